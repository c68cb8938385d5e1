"""Where checkpoints lie, which are complete, which to keep; no torch in here.

RUN/checkpoints/best points to the best checkpoint where one is kept; which one it is, each state.json says.
RUN/checkpoints/step_00000100/: manifest.json (size and SHA-256 of each file, written last), state.json (step,
counters, data position), config.yaml, tensors/ (Megatron-Core's sharded format). One that was converted lies alone, with
tokenizer/. A directory gets its name when it is complete.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from megalm import atomic, progress
from megalm.config import Config, load_config
from megalm.errors import UserError
from megalm.hashes import sha256_of

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
BEST = "best"
TENSORS = "tensors"
_NAME = re.compile(r"step_(\d{8,})")


def checkpoint_name(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step_{step:08d}"


def list_checkpoints(run_directory: str | Path) -> dict[int, Path]:
    """Checkpoints of a run by step, oldest first; each was complete when it got its name."""
    found = {}
    for path in (Path(run_directory) / CHECKPOINTS).glob("step_*"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def find_checkpoint(path: str | Path, step: int | str | None = None) -> Path:
    """The checkpoint at `path`: itself, or of a run directory the one of `step` (default: the newest).

    step: a number, also as text, or `best`: what the run kept by checkpoint.keep_best.
    """
    path = Path(path)
    if (path / "manifest.json").is_file() and (path / TENSORS).is_dir():
        if step is not None:
            raise UserError(
                f"{path} is one checkpoint, and a step chooses among those of a run: leave it out"
            )
        return path
    if not path.is_dir():
        raise UserError(f"{path}: no such run or checkpoint directory")
    found = list_checkpoints(path)
    if not found and (path / "config.json").is_file():
        raise UserError(f"{path} is a model of Hugging Face's: convert it first, megalm convert {path} DEST")
    if not found:
        raise UserError(
            f"{path}: neither a checkpoint (manifest.json, {TENSORS}/) nor a run directory with checkpoints"
        )
    if step is None:
        return found[max(found)]
    step = _best_step(path, found) if step == BEST else _number(step)
    if step not in found:
        raise UserError(f"{path}: no checkpoint of step {step}; there are {', '.join(map(str, found))}")
    return found[step]


def _number(step: int | str) -> int:
    try:
        return int(step)
    except ValueError:
        raise UserError(f"step {step!r} is neither a number nor `{BEST}`") from None


def _best_step(path: Path, found: dict[int, Path]) -> int:
    """What the newest checkpoint whose state is whole says."""
    for checkpoint in reversed(found.values()):
        try:
            best = best_step_in(read_state(checkpoint))
        except UserError:
            continue
        if best is not None:
            return best
        break
    raise UserError(f"{path}: no best checkpoint was kept; set checkpoint.keep_best.metric, or name a step")


def best_step_in(state: dict[str, Any]) -> int | None:
    """Step of the best checkpoint so far in what a checkpoint's state.json holds, None where none is kept."""
    return (state.get("best") or {}).get("step")


def point_to_best(run_directory: Path, step: int | None) -> None:
    """Let RUN/checkpoints/best be a link to the checkpoint of `step`, or not be there; a kill leaves the old one."""
    link, target = run_directory / CHECKPOINTS / BEST, checkpoint_name(step) if step is not None else None
    if target == (os.readlink(link) if link.is_symlink() else None):
        return
    temporary = link.with_name(f".{BEST}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        if target is None:
            link.unlink()
        else:
            temporary.symlink_to(target)
            temporary.replace(link)
        atomic.sync_directory(link.parent)
    except OSError as error:  # not every file system has links
        logger.warning("%s cannot be made a link to %s (%s); use --step %s", link, target, error, BEST)


def refuse_among_checkpoints(target: str | Path) -> None:
    """Raise UserError where what is to be written at `target` would lie among a run's checkpoints, which its training keeps."""
    for folder in Path(target).resolve().parents:
        run = folder.parent
        if folder.name == CHECKPOINTS and ((run / "config.yaml").is_file() or list_checkpoints(run)):
            raise UserError(
                f"{target} lies among the checkpoints of the run {run}, which its training keeps and deletes; choose a path "
                "outside"
            )


def read_config(path: str | Path) -> Config:
    """Configuration of the run that wrote the checkpoint at `path`; UserError if it is damaged."""
    _check_file(Path(path), "config.yaml")
    return load_config(Path(path) / "config.yaml")


def find_base(checkpoint: Path, config: Config) -> Path:
    """The checkpoint that the adapters in `checkpoint` adapt; UserError where it is gone, or holds adapters itself."""
    assert config.run.load is not None
    try:
        base = find_checkpoint(config.run.load)
    except UserError as error:
        raise UserError(
            f"{checkpoint} holds adapters alone, of run.load {config.run.load}: {error}; bring it back there (a link will do)"
        ) from None
    refuse_adapters(base)
    return base


def fingerprint(checkpoint: Path, dtype: str) -> str:
    """What tells a model's answers from another's: the hash of its files' checksums and those of its base, and its number format."""
    config = read_config(checkpoint)
    folders = [checkpoint, *([find_base(checkpoint, config)] if config.lora.rank else [])]
    manifests = b"".join((folder / "manifest.json").read_bytes() for folder in folders)
    return hashlib.sha256(manifests + dtype.encode()).hexdigest()


def refuse_adapters(path: Path) -> None:
    """Raise UserError if the checkpoint at `path`, which is to be adapted, holds adapters itself."""
    if read_config(path).lora.rank:
        raise UserError(
            f"{path} holds adapters itself; merge them with their model first: megalm merge {path} DEST"
        )


def tokenizer_places(checkpoint: Path) -> list[Path]:
    """Where a checkpoint's tokenizer may lie: beside its weights and, of a run's, in the run."""
    own, above = checkpoint / "tokenizer", checkpoint.resolve().parent
    return [own, above.parent / "tokenizer"] if above.name == CHECKPOINTS else [own]


def tokenizer_of(checkpoint: Path, config: Config) -> Path | None:
    """The tokenizer that belongs to a checkpoint: its own, its run's, or the one that it was trained with."""
    for path in tokenizer_places(checkpoint):
        if path.is_dir():
            return path
    return Path(config.tokenizer.path) if config.tokenizer.path else None


def read_state(path: str | Path) -> dict[str, Any]:
    """Step, counters and data position of the checkpoint at `path`; UserError if they are damaged."""
    _check_file(Path(path), "state.json")
    return json.loads((Path(path) / "state.json").read_text(encoding="utf-8"))


def verify(path: str | Path, part: int = 0, parts: int = 1) -> str | None:
    """Compare files with the manifest; return what is wrong or None. Digests: every `parts`-th file from `part`."""
    path = Path(path)
    try:
        files = _read_manifest(path)
    except UserError as error:
        return str(error)
    for number, (name, expected) in enumerate(sorted(files.items())):
        progress.beat()
        try:
            wrong = _compare(path / name, expected, with_digest=number % parts == part)
        except OSError as error:
            wrong = f"{path / name}: {error.strerror}"
        if wrong:
            return wrong
    return None


def stored_bytes(path: Path) -> int:
    """What the files of a checkpoint take; 0 where its manifest cannot be read."""
    try:
        return sum(size for size, _ in _read_manifest(path).values())
    except UserError:
        return 0


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of each file of a checkpoint."""
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        return {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: manifest.json is missing or damaged ({error!r}); use another checkpoint"
        ) from None


def _compare(file: Path, expected: tuple[int, str], with_digest: bool = True) -> str | None:
    size, digest = expected
    if not file.is_file():
        return f"{file}: missing"
    if file.stat().st_size != size:
        return f"{file}: {file.stat().st_size} bytes, the manifest says {size}"
    if with_digest and sha256_of(file) != digest:
        return f"{file}: content differs from the manifest's checksum"
    return None


def _check_file(path: Path, name: str) -> None:
    files = _read_manifest(path)
    wrong = _compare(path / name, files[name]) if name in files else f"{path / name}: not in the manifest"
    if wrong:
        raise UserError(f"{wrong}; use another checkpoint")


def write_manifest(path: Path, digests: dict[str, str]) -> None:
    """Record every file below `path`; `digests` holds those already known and synced, by relative name."""
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = str(file.relative_to(path))
        if name not in digests:
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        files[name] = {"size": file.stat().st_size, "sha256": digests.get(name) or sha256_of(file)}
    atomic.write_text(path / "manifest.json", json.dumps({"format": 1, "files": files}, indent=1))


def prune(run_directory: Path, keep_last: int, keep_every: int, best: int | None = None) -> list[int]:
    """Delete checkpoints but the newest `keep_last`, those at multiples of `keep_every` steps, and the best one."""
    found = list_checkpoints(run_directory)
    kept = {*sorted(found)[-keep_last:], best}
    dropped = [s for s in found if s not in kept and not (keep_every and s % keep_every == 0)]
    for step in dropped:
        discard(found[step])
    return dropped


def discard(path: Path) -> None:
    """Delete a checkpoint so that a kill on the way leaves no half of it under its name."""
    doomed = path.with_name(f".{path.name}.deleted")
    path.rename(doomed)
    shutil.rmtree(doomed)


def set_aside(path: Path) -> None:
    """Take a damaged checkpoint out of the list and keep it for a look: step_00000100.damaged."""
    target = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)


def clear_remains(run_directory: Path) -> None:
    """Delete what killed saves and deletions left behind."""
    for path in (run_directory / CHECKPOINTS).glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)
