"""One training step behind one small interface."""

from megalm.parallel import cpu

cpu.install()  # before any module here imports Megatron-Core
