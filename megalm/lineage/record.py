"""What is written down of how something came to be: the program, and models and files by path and hash."""

import functools
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import megalm
from megalm import atomic
from megalm.checkpoint.directory import find_checkpoint
from megalm.errors import UserError
from megalm.hashes import sha256_of
from megalm.run_files import LINEAGE as FILE_NAME

PACKAGES = (
    "torch",
    "megatron-core",
    "deepspeed",
    "transformer-engine",
    "flash-attn",
    "transformers",
    "numpy",
)
_GIT_SECONDS = 10


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@functools.cache
def program() -> dict[str, Any]:
    """Versions of megalm, of Python and of what computes, and the revision of the code where it runs from a checkout."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "megalm": megalm.__version__,
        "code": _revision(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _revision() -> str | None:
    """The commit, with `+changes` where files differ from it; None outside a checkout."""
    root = Path(megalm.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=_GIT_SECONDS,
                stdin=subprocess.DEVNULL,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def model_record(role: str, path: str | Path) -> dict[str, Any]:
    """Which checkpoint stands at `path` (a checkpoint, or a run: its newest), and a hash of all it holds; none where it is gone.

    The hash is that of its manifest, which has the hashes of its files.
    """
    record: dict[str, Any] = {"role": role, "path": str(Path(path).absolute())}
    try:
        checkpoint = find_checkpoint(path)
    except UserError:
        return record | {"checkpoint": None, "sha256": None}
    return record | {"checkpoint": str(checkpoint.absolute()), "sha256": model_hash(checkpoint)}


def model_hash(checkpoint: Path) -> str:
    """Of the checkpoint's manifest."""
    return sha256_of(checkpoint / "manifest.json")


def file_record(role: str, path: str | Path) -> dict[str, Any]:
    """A file with its size and hash."""
    path = Path(path)
    return {
        "role": role,
        "path": str(path.absolute()),
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
    }


def write_made(folder: Path, how: str, sources: Iterable[dict[str, Any]]) -> None:
    """Say in `folder` how its model was made, and of what (see `model_record`, `file_record`)."""
    record = {"made_by": how, "program": program(), "made_of": list(sources)}
    atomic.write_text(folder / FILE_NAME, json.dumps(record, indent=1))


def hub_records(folder: Path) -> list[dict[str, Any]]:
    """A model in Hugging Face's form: the folder, then its settings and weights, each with its hash."""
    kept = sorted(
        p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json"
    )
    return [{"role": "source", "path": str(folder.absolute())}, *(file_record(p.name, p) for p in kept)]
