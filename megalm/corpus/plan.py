"""What a build has to do: its input files, and the parts of them that each task reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import megalm
from megalm import atomic
from megalm.corpus.recipe import Recipe
from megalm.corpus.sources.base import InputFile, Part
from megalm.errors import UserError

LARGEST_PLAN = 100_000  # tasks; each costs some files in the work directory


class Plan(NamedTuple):
    """The parts of each task, and all that makes one build differ from another."""

    tasks: list[list[Part]]
    identity: dict[str, Any]

    @classmethod
    def make(cls, recipe: Recipe) -> "Plan":
        """List the inputs and deal them out in order; the same for any executor and number of workers."""
        found = [source.files() for source in recipe.sources]
        files = [file for one in found for file in one]
        total = sum(file.size for file in files)
        size = max(1, -(-total // recipe.file.tasks) if recipe.file.tasks else recipe.file.task_bytes)
        parts = [
            part
            for number, source in enumerate(recipe.sources)
            for file in found[number]
            for part in source.cut(number, file, size)
        ]
        count = recipe.file.tasks or -(-total // size)
        tasks = deal(parts, max(1, min(count, len(parts))))
        if len(tasks) > LARGEST_PLAN:
            raise UserError(
                f"the inputs make {len(tasks)} tasks; raise task_bytes, now {recipe.file.task_bytes}"
            )
        identity = {
            "megalm": megalm.__version__,
            "recipe": recipe.resolved(),
            "tasks": len(tasks),
            "inputs": [[file.path, file.size, file.modified_ns] for file in files],
            "step_files": [_state(path) for path in recipe.files()],
        }
        return cls(tasks, identity)

    def save(self, folder: Path) -> None:
        """Write the parts of each task, then the identity, which says that all are there."""
        for number, parts in enumerate(self.tasks):
            atomic.write_text(folder / "parts" / f"{number:05d}.json", json.dumps(parts))
        atomic.write_text(folder / "plan.json", json.dumps(self.identity, indent=1))

    def check_same(self, folder: Path) -> bool:
        """Whether this very build was begun in `folder`; raises UserError where another one was."""
        before = _begun(folder)
        if before is None:
            return False
        now = _plain(self.identity)
        if before == now:
            return True
        raise _differs(folder, _difference(before, now))


def check_recipe(recipe: Recipe, folder: Path) -> None:
    """Raise UserError where a build of another recipe was begun in `folder`, before anything is fetched for this one."""
    before = _begun(folder)
    if before is not None and (change := _changed("recipe", before["recipe"], _plain(recipe.resolved()))):
        raise _differs(folder, change)


def _begun(folder: Path) -> dict[str, Any] | None:
    """The identity of the build that was begun in `folder`."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    before = json.loads(path.read_text(encoding="utf-8"))
    if not before:
        raise UserError(f"{folder.parent} was half removed; build anew with --overwrite")
    return before


class OtherBuildError(UserError):
    """What lies at the output belongs to another build; `why` says how it differs."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; choose another output, or build anew with --overwrite")
        self.why = why


def _differs(folder: Path, change: str) -> UserError:
    return OtherBuildError(f"{folder.parent} was built from something else: {change}")


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def read_parts(folder: Path, rank: int) -> list[Part]:
    """The parts of a task of a saved plan."""
    entries = json.loads((folder / "parts" / f"{rank:05d}.json").read_text(encoding="utf-8"))
    return [Part(source, InputFile(*file), start, stop) for source, file, start, stop in entries]


def deal(parts: Sequence[Part], count: int) -> list[list[Part]]:
    """Cut the row of parts into `count` pieces of about equal size, none empty if there are parts enough."""
    total = sum(part.size for part in parts) or 1
    tasks: list[list[Part]] = [[] for _ in range(count)]
    before, task = 0, 0
    for number, part in enumerate(parts):
        wanted = min(before * count // total, count - 1)
        forced = count - (len(parts) - number)  # so many tasks are left that each part needs its own
        if tasks[task]:
            task = min(max(task, wanted, forced), task + 1)
        tasks[task].append(part)
        before += part.size
    return tasks


def _state(path: Path) -> list[Any]:
    try:
        status = path.expanduser().stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from None
    return [str(path.expanduser().absolute()), status.st_size, status.st_mtime_ns]


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first thing that differs, in a few words."""
    for kind, title in (("inputs", "input"), ("step_files", "file")):
        old, new = ({path: state for path, *state in identity[kind]} for identity in (before, now))
        for path in [*old, *new]:
            if path not in new:
                return f"{title} {path} is gone"
            if path not in old:
                return f"{title} {path} is new"
            if old[path] != new[path]:
                return f"{title} {path} has changed since"
    return _changed("", before, now) or "something changed"


def _changed(where: str, before: Any, now: Any) -> str | None:
    if before == now:
        return None
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        inner = (_changed(f"{where}.{key}".strip("."), before.get(key), now.get(key)) for key in keys)
        return next((text for text in inner if text), None)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        inner = (_changed(f"{where}.{n}", *pair) for n, pair in enumerate(zip(before, now, strict=True)))
        return next((text for text in inner if text), None)
    return f"{where} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
