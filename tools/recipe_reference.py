#!/usr/bin/env python3
"""Prints docs/corpus_recipe.md: every key of a recipe, of each kind of source and of each step."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.corpus.reference import render_recipe_reference

if __name__ == "__main__":
    sys.stdout.write(render_recipe_reference())
