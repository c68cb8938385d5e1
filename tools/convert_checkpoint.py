#!/usr/bin/env python3
"""Convert a checkpoint: the command `megalm convert` under the name that users of Megatron-LM look for."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from megalm.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
