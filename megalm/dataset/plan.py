"""What a build has to do: its input files and the chunks that they are cut into."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from megalm.dataset.chunks import Chunk
from megalm.dataset.recipe import Recipe
from megalm.tokenizer.documents import splits_by_line

SMALLEST_CHUNK = 4 << 20
LARGEST_CHUNK = 512 << 20
CHUNKS_AIMED_AT = 1024  # enough for balance and progress, few enough to merge
KEY_LENGTH = 24


@dataclass(frozen=True)
class InputFile:
    """A file as found when the build began."""

    path: str
    size: int
    modified_ns: int
    key: str
    """Names what is computed from the file; differs wherever the file does."""


@dataclass(frozen=True)
class Plan:
    """A build's settings, inputs and chunks; the same for any number of workers."""

    recipe: Recipe
    files: list[InputFile]
    chunks: list[Chunk]

    @classmethod
    def make(cls, recipe: Recipe, paths: list[Path]) -> "Plan":
        """Cut `paths` into chunks: files read line by line at multiples of a size, others whole."""
        files = []
        for path in paths:
            status = path.stat()
            identity = (str(path), status.st_size, status.st_mtime_ns)
            files.append(InputFile(*identity, key=_key(identity)))
        step = _chunk_size(sum(file.size for file in files))
        chunks = []
        for number, file in enumerate(files):
            starts = range(0, file.size, step) if splits_by_line(Path(file.path), recipe.sample_by) else [0]
            for start in starts:
                stop = start + step if start + step < file.size and len(starts) > 1 else None
                size = (file.size if stop is None else stop) - start
                key = _key((asdict(recipe), file.key, number, start, stop))
                chunks.append(Chunk(key, file.path, number, start, stop, size))
        return cls(recipe, files, chunks)

    def to_json(self) -> str:
        """Return the plan as text, to be told from another."""
        return json.dumps(asdict(self), indent=1)

    def begun_in(self, folder: Path) -> bool:
        """Whether an unfinished build of this very plan lies in `folder`."""
        path = folder / "plan.json"
        return path.exists() and path.read_text(encoding="utf-8") == self.to_json()

    def clear_unusable(self, folder: Path) -> None:
        """Remove from `folder` what no part of this plan can use."""
        known = {chunk.key for chunk in self.chunks} | {file.key for file in self.files}
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in ("lock", "plan.json") and path.name[:KEY_LENGTH] not in known:
                path.unlink(missing_ok=True)


def _key(identity: object) -> str:
    return hashlib.blake2b(repr(identity).encode(), digest_size=KEY_LENGTH // 2).hexdigest()


def _chunk_size(total: int) -> int:
    """A power of two, so that one changed file seldom moves the borders in the others."""
    size = SMALLEST_CHUNK
    while size < LARGEST_CHUNK and size * CHUNKS_AIMED_AT < total:
        size *= 2
    return size
