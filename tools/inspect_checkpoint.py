#!/usr/bin/env python3
"""Lists the tensors of a checkpoint: names, shapes, formats, shards; `megalm inspect` under the name Megatron users know."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from megalm.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
