"""What holds for every test."""

import os

# Several processes share the cores; set before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
