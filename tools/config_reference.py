#!/usr/bin/env python3
"""Prints docs/configuration.md: every section and field of the configuration with type, default and meaning."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.config.presets import PRESETS
from megalm.config.reference import render_reference

if __name__ == "__main__":
    sys.stdout.write(render_reference(PRESETS))
