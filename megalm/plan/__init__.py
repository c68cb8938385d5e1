"""Memory and communication of a layout before it runs: one rank's engine takes a step on tensors without memory."""

from megalm.parallel import cpu

cpu.install()  # before any module here imports Megatron-Core
