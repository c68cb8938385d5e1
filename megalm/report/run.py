"""A run as its directory tells it, finished or not: configuration, lineage, figures, and what could not be read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalm import run_files
from megalm.config import Config
from megalm.config.load import read_yaml
from megalm.config.rlhf import RL_TASKS
from megalm.errors import UserError
from megalm.report.figures import Figures, read_figures
from megalm.report.json_lines import mapping, read_object

MOST_RUNS = 8
"""Side by side: of more, colours could not be told apart."""


@dataclass
class RunRecord:
    """One run. parsed: the configuration as this version of megalm reads it, None where it cannot. damage: what is unreadable."""

    name: str
    directory: Path
    config: dict[str, Any]
    parsed: Config | None
    lineage: dict[str, Any]
    figures: Figures
    reward: dict[str, Any]
    classification: dict[str, Any]
    damage: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        """What was learned."""
        return str(self.config.get("task", "unknown"))

    @property
    def family(self) -> str:
        """Runs of one family have the same figures, and share charts."""
        return "reinforcement learning" if self.task in RL_TASKS else self.task


def read_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The runs in the directories `paths`, each with a name of its own; UserError for what is no run, or named twice."""
    if len(paths) > MOST_RUNS:
        raise UserError(f"{len(paths)} runs: at most {MOST_RUNS} fit side by side; name fewer")
    directories = [Path(path) for path in paths]
    for directory in directories:
        _check(directory)
    resolved = [directory.resolve() for directory in directories]
    if twice := [path for path, count in Counter(resolved).items() if count > 1]:
        raise UserError(f"{twice[0]} is named twice: name each run once")
    names = names_of(resolved)
    return [_read(name, directory) for name, directory in zip(names, directories, strict=True)]


def names_of(directories: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells them apart: `a/run`, `b/run`, or `run` of one alone."""
    longest = max(len(path.parts) for path in directories)
    for length in range(1, longest + 1):
        names = ["/".join(path.parts[-length:]) for path in directories]
        if len(set(names)) == len(names):
            break
    return names


def _check(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such run directory; name what run.dir was")
    if any((directory / name).is_file() for name in (run_files.METRICS, run_files.LINEAGE)):
        return
    if (directory / "manifest.json").is_file():
        raise UserError(
            f"{directory} is a checkpoint or a converted model, not a run: name its run directory"
        )
    raise UserError(f"{directory} is no run: it has neither {run_files.METRICS} nor {run_files.LINEAGE}")


def _read(name: str, directory: Path) -> RunRecord:
    damage: list[str] = []
    config = _read_config(directory / run_files.CONFIG, damage)
    figures = read_figures(directory / run_files.METRICS)
    if figures.broken:
        damage.append(f"{run_files.METRICS}: {figures.broken:,} lines that are no JSON object with a step")
    return RunRecord(
        name=name,
        directory=directory,
        config=config,
        parsed=_parse(config),
        lineage=_read_json(directory / run_files.LINEAGE, damage),
        figures=figures,
        reward=_read_json(directory / run_files.REWARD, damage),
        classification=_read_json(directory / run_files.CLASSIFICATION, damage),
        damage=damage,
    )


def _read_config(path: Path, damage: list[str]) -> dict[str, Any]:
    try:
        found = read_yaml(path)
    except (UserError, RecursionError) as error:
        damage.append(f"{run_files.CONFIG}: {'missing' if not path.exists() else error}")
        return {}
    if not isinstance(found, dict):
        damage.append(f"{run_files.CONFIG}: no sections in it")
    return mapping(found)


def _parse(config: dict[str, Any]) -> Config | None:
    try:
        return Config.model_validate(config) if config else None
    except ValueError:  # another version's
        return None


def _read_json(path: Path, damage: list[str]) -> dict[str, Any]:
    found = read_object(path)
    if found is None and path.exists():
        damage.append(f"{path.name}: no JSON object")
    return found or {}
