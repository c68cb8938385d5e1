"""Moves models in and out: Hugging Face's directories and Megatron-LM's checkpoints, a tensor at a time."""
