"""Decoder-only transformers on Megatron-Core's GPTModel through our own layer spec."""

from megalm.parallel import cpu

cpu.install()  # before any module here imports Megatron-Core
