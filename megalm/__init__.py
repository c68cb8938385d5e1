"""megalm: train large language models on any layout of processes, with the same answer on each."""

__version__ = "0.1.0"
