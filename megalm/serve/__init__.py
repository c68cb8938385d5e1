"""Models behind OpenAI's API: a front that speaks HTTP, and beside it a world of processes for each copy of a model."""
