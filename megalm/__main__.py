"""`python -m megalm`, which is also what launchers start: `torchrun -m megalm train ...`."""

import sys

from megalm.cli import main

if __name__ == "__main__":
    sys.exit(main())
