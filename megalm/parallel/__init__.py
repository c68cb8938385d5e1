"""How a model is spread over processes, and what lets Megatron-Core run where there is no GPU."""
