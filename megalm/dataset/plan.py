"""What a build has to do: its input files and the chunks that they are cut into."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from megalm import atomic
from megalm.dataset.chat import settings_from
from megalm.dataset.chunks import Chunk
from megalm.dataset.fim import FimTokens
from megalm.dataset.recipe import Extras, Recipe
from megalm.errors import UserError
from megalm.tokenizer.documents import splits_by_line

SMALLEST_CHUNK = 4 << 20
LARGEST_CHUNK = 512 << 20
CHUNKS_AIMED_AT = 1024  # enough for balance and progress, few enough to merge
KEY_LENGTH = 24
FORMAT = 2  # of runs; another number where older ones cannot be read


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
            by_line = splits_by_line(Path(file.path), recipe.sample_by) and not recipe.extras.chat
            starts = range(0, file.size, step) if by_line else [0]
            for start in starts:
                stop = start + step if start + step < file.size and len(starts) > 1 else None
                size = (file.size if stop is None else stop) - start
                key = _key((FORMAT, asdict(recipe), file.key, number, start, stop))
                chunks.append(Chunk(key, file.path, number, start, stop, size))
        return cls(recipe, files, chunks)

    def to_json(self) -> str:
        """Return the plan as text, to be told from another."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Return the plan of the build in `folder`."""
        found = json.loads(_plan_path(folder).read_text(encoding="utf-8"))
        recipe = found["recipe"]
        extras = recipe["extras"]
        recipe["extras"] = Extras(**{**extras, "chat": settings_from(extras["chat"])})
        recipe["fim_tokens"] = FimTokens(**recipe["fim_tokens"]) if recipe["fim_tokens"] else None
        files = [InputFile(**file) for file in found["files"]]
        return cls(Recipe(**recipe), files, [Chunk(**chunk) for chunk in found["chunks"]])

    def begun_in(self, folder: Path) -> bool:
        """Whether an unfinished build of this very plan lies in `folder`."""
        path = _plan_path(folder)
        return path.exists() and path.read_text(encoding="utf-8") == self.to_json()

    def begin_in(self, folder: Path) -> None:
        """Make `folder` ready for this build: what no part of it can use is removed, finished parts stay."""
        known = {chunk.key for chunk in self.chunks} | {file.key for file in self.files}
        again = self.begun_in(folder)
        # Markers go first: after a kill in between, no part is taken for finished that is half removed.
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".json"):
            if path.name.startswith(".") or not again:
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in ("lock", "plan.json") and path.name[:KEY_LENGTH] not in known:
                    path.unlink(missing_ok=True)
        atomic.write_text(_plan_path(folder), self.to_json())

    def check_unchanged(self) -> None:
        """Raise UserError where an input is not as it was when the build began."""
        for file in self.files:
            try:
                status = os.stat(file.path)
                same = (status.st_size, status.st_mtime_ns) == (file.size, file.modified_ns)
            except FileNotFoundError:
                same = False
            if not same:
                raise UserError(
                    f"{file.path} changed during the build; repeat the command when the inputs are at rest"
                )


def _plan_path(folder: Path) -> Path:
    return folder / "plan.json"


def _key(identity: object) -> str:
    return hashlib.blake2b(repr(identity).encode(), digest_size=KEY_LENGTH // 2).hexdigest()


def _chunk_size(total: int) -> int:
    """A power of two, so that one changed file seldom moves the borders in the others."""
    size = SMALLEST_CHUNK
    while size < LARGEST_CHUNK and size * CHUNKS_AIMED_AT < total:
        size *= 2
    return size
