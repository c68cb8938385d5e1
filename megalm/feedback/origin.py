"""Which weights wrote an answer, as far as is recorded beside them."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from megalm.lineage.record import model_hash


@dataclass(frozen=True)
class Origin:
    """A checkpoint. lineage: hash of its manifest, by which `megalm lineage` knows it again."""

    checkpoint: str
    step: int | None
    lineage: str | None


def origin_of(checkpoint: Path) -> Origin:
    """What its files say; where one is missing, nothing of that."""
    try:
        found = (checkpoint / "manifest.json").stat()
    except OSError:
        return _read(checkpoint, None)
    return _read(checkpoint, (found.st_mtime_ns, found.st_size, found.st_ino))


@functools.lru_cache(maxsize=64)
def _read(checkpoint: Path, _: tuple[int, ...] | None) -> Origin:
    """The second argument changes where the checkpoint does."""
    try:
        step = json.loads((checkpoint / "state.json").read_text(encoding="utf-8")).get("step")
    except (OSError, ValueError, AttributeError):
        step = None
    try:
        lineage = model_hash(checkpoint)
    except OSError:
        lineage = None
    return Origin(str(checkpoint.absolute()), step if isinstance(step, int) else None, lineage)
