"""Reads JSON that a run wrote, or is writing at this moment: what is broken is counted and left out, never an error."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_objects(path: Path) -> Iterator[dict[str, Any] | None]:
    """The objects of a file of JSON lines in their order; None for a line that is none. Nothing where there is no file.

    A last line without its end is one that is being written, or that a kill cut short: it is not there yet.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield _object_in(line)


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file or another thing in it."""
    return _object_in(path.read_bytes()) if path.is_file() else None


def read_named(path: Path) -> dict[str, Any] | None:
    """The same of a file that a run names: also None where the name is none of a file, or it may not be read."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return None


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, an empty one for all else."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects in the value if it is a list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """The value as a float if it is a number that fits into one, NaN for null, None for all else."""
    if value is None:
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _object_in(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
