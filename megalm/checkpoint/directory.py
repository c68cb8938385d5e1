"""Where checkpoints lie, which are complete, which to keep; no torch in here.

RUN/checkpoints/step_00000100/: manifest.json (size and SHA-256 of each file, written last), state.json (step,
counters, data position), config.yaml, tensors/ (Megatron-Core's sharded format). A directory gets its name when it is complete.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.config import Config, load_config
from megalm.errors import UserError

CHECKPOINTS = "checkpoints"
TENSORS = "tensors"
_NAME = re.compile(r"step_(\d{8,})$")


def checkpoint_name(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step_{step:08d}"


def list_checkpoints(run_directory: str | Path) -> dict[int, Path]:
    """Complete checkpoints of a run by step, oldest first."""
    found = {}
    for path in (Path(run_directory) / CHECKPOINTS).glob("step_*"):
        match = _NAME.search(path.name)
        if match and (path / "manifest.json").is_file():
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def find_checkpoint(path: str | Path, step: int | None = None) -> Path:
    """The checkpoint at `path`: itself, or of a run directory the one of `step` (default: the newest)."""
    path = Path(path)
    if (path / "manifest.json").is_file() and (path / TENSORS).is_dir():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such run or checkpoint directory")
    found = list_checkpoints(path)
    if not found:
        raise UserError(f"{path}: neither a checkpoint nor a run directory with complete checkpoints")
    if step is None:
        return found[max(found)]
    if step not in found:
        raise UserError(f"{path}: no checkpoint of step {step}; there are {', '.join(map(str, found))}")
    return found[step]


def read_config(path: str | Path) -> Config:
    """Configuration of the run that wrote the checkpoint at `path`."""
    return load_config(Path(path) / "config.yaml")


def read_state(path: str | Path) -> dict[str, Any]:
    """Step, counters and data position of the checkpoint at `path`."""
    try:
        return json.loads((Path(path) / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: state.json is missing or damaged ({error}); use another checkpoint") from None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def verify(path: str | Path, part: int = 0, parts: int = 1) -> str | None:
    """Compare files with the manifest; return what is wrong or None. Digests: every `parts`-th file from `part`."""
    path = Path(path)
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{path}: manifest.json is missing or damaged ({error})"
    for number, (name, expected) in enumerate(sorted(files.items())):
        file = path / name
        if not file.is_file():
            return f"{file}: missing"
        if file.stat().st_size != expected["size"]:
            return f"{file}: {file.stat().st_size} bytes, the manifest says {expected['size']}"
        if number % parts == part and file_digest(file) != expected["sha256"]:
            return f"{file}: content differs from the manifest's checksum"
    return None


def write_manifest(path: Path, digests: dict[str, str]) -> None:
    """Record every file below `path`; `digests` holds those already known, by relative name."""
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = str(file.relative_to(path))
        files[name] = {"size": file.stat().st_size, "sha256": digests.get(name) or file_digest(file)}
    atomic.write_text(path / "manifest.json", json.dumps({"format": 1, "files": files}, indent=1))


def prune(run_directory: Path, keep_last: int, keep_every: int) -> list[int]:
    """Delete checkpoints that are neither among the newest `keep_last` nor at a multiple of `keep_every` steps."""
    found = list_checkpoints(run_directory)
    newest = set(sorted(found)[-keep_last:])
    dropped = [s for s in found if s not in newest and not (keep_every and s % keep_every == 0)]
    for step in dropped:
        discard(found[step])
    return dropped


def discard(path: Path) -> None:
    """Delete a checkpoint so that a kill on the way leaves no half of it under its name."""
    doomed = path.with_name(f".{path.name}.deleted")
    path.rename(doomed)
    shutil.rmtree(doomed)


def clear_remains(run_directory: Path) -> None:
    """Delete what killed saves and deletions left behind."""
    for path in (run_directory / CHECKPOINTS).glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
