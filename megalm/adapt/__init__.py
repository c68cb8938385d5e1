"""From a user's files and a base model to a model that knows their domain."""
