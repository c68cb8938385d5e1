"""OpenAI's API: what requests and answers look like, and what each address does."""
