"""Runs that differ in some values: one for each combination."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from megalm.errors import UserError

_LONGEST = 150  # signs of a name; file systems take 255
_BRACKETS = {"[": "]", "{": "}", '"': '"', "'": "'"}


def combinations(sweeps: Sequence[str]) -> list[list[str]]:
    """Overrides of each run: `optimizer.lr=1e-3,3e-4` and `train.steps=10,20` make four. UserError for what is no `KEY=VALUE,VALUE`."""
    axes: list[tuple[str, list[str]]] = []
    for sweep in sweeps:
        key, equals, text = sweep.partition("=")
        values = _split(text)
        if not equals or not key or not all(values):
            raise UserError(f"--sweep {sweep!r}: expected KEY=VALUE,VALUE,..., e.g. optimizer.lr=1e-3,3e-4")
        if len(set(values)) < len(values):
            raise UserError(f"--sweep {sweep!r}: a value stands there twice")
        if any(key == known for known, _ in axes):
            raise UserError(f"--sweep {sweep!r}: {key} is given twice, put its values together")
        axes.append((key, values))
    return [
        [f"{key}={value}" for (key, _), value in zip(axes, chosen, strict=True)]
        for chosen in itertools.product(*(values for _, values in axes))
    ]


def run_directory(base: str, overrides: Sequence[str]) -> Path:
    """Where the run with these overrides lies: BASE/lr=1e-3,steps=10; a sign of its own where the values cannot be in a name."""
    keys = [override.partition("=")[0] for override in overrides]
    lasts = [key.rpartition(".")[2] for key in keys]
    names = lasts if len(set(lasts)) == len(lasts) else keys
    parts = [f"{name}={override.partition('=')[2]}" for name, override in zip(names, overrides, strict=True)]
    wanted = ",".join(parts)
    name = re.sub(r"[^\w.,=+-]", "_", wanted, flags=re.ASCII)[:_LONGEST]
    if name != wanted:
        name += "-" + hashlib.sha256(wanted.encode()).hexdigest()[:8]
    return Path(base) / name


def _split(text: str) -> list[str]:
    """At commas that do not stand within brackets or quotes."""
    parts, closing, part = [], "", ""
    for sign in text:
        if sign == "," and not closing:
            parts.append(part.strip())
            part = ""
            continue
        part += sign
        if closing.endswith(sign):
            closing = closing[: -len(sign)]
        elif sign in _BRACKETS and not (closing and closing[-1] in "\"'"):
            closing += _BRACKETS[sign]
    return [*parts, part.strip()]
