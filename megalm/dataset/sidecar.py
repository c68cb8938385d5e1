"""The JSON file beside a token dataset that says how it was made."""

import json
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.errors import UserError

KIND = "megalm dataset"
"""What every record says it is, under "kind"."""


def sidecar_path(prefix: str | Path) -> Path:
    """Return the file that describes the dataset at `prefix`."""
    return Path(f"{prefix}.json")


def read_sidecar(prefix: str | Path) -> dict[str, Any] | None:
    """Return what is recorded of the dataset at `prefix`, None where nothing is (files of other programs)."""
    path = sidecar_path(prefix)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(
            f"{path} is no record of a dataset; move it away or choose another name for the dataset (or copy it again "
            "if it is damaged)"
        )
    return content


def write_sidecar(prefix: str | Path, content: dict[str, Any]) -> None:
    """Record `content` beside the dataset at `prefix`."""
    atomic.write_text(sidecar_path(prefix), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
