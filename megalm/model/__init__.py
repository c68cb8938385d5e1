"""Decoder-only transformers on Megatron-Core's GPTModel through our own layer spec."""
