#!/usr/bin/env python3
"""Lists the tensors of a checkpoint: names, shapes, formats, shards; `megalm inspect` under the name Megatron users know."""

import sys

from megalm.cli import main

if __name__ == "__main__":
    sys.exit(main(["inspect", *sys.argv[1:]]))
