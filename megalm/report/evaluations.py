"""What `megalm eval` found of the runs' checkpoints and of other models: a table of scores, with what each gained or lost."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megalm.errors import UserError
from megalm.evaluate.compare import Change, changes, read_results
from megalm.report.json_lines import mapping, number
from megalm.report.run import RunRecord, names_of

FOLDER = "evaluation"
"""Where a run's evaluations lie, each in a directory that is called as the checkpoint."""
MOST_COLUMNS = 8
BENCHMARKS, BIAS, SAFETY = "Benchmarks", "Bias", "Safety"
TOPICS = (BENCHMARKS, BIAS, SAFETY)
_BIAS_KINDS = ("pairs", "bbq")
_SAFETY_KINDS = ("toxicity", "refusal", "pii", "memorization")


class Column(NamedTuple):
    """A model that was asked. style: of its run's colour; empty for a model of no run. dtype: in which it computed."""

    name: str
    style: str
    folder: Path
    dtype: str
    tasks: dict[str, Any]
    averages: dict[str, Any]


class Cell(NamedTuple):
    """A score. interval: of it; change: from the first column's, with its interval; verdict: gain, loss, or nothing certain."""

    score: str
    interval: str
    change: str
    verdict: str
    is_chance: bool


class ScoreRow(NamedTuple):
    """A task's metric, a group of its questions, or an average; cells: by column, None where it was not asked."""

    topic: str
    task: str
    metric: str
    questions: int | None
    chance: str
    cells: list[Cell | None]
    groups: "list[ScoreRow]"


class Scores(NamedTuple):
    """The table. older: evaluations of earlier checkpoints that are left out."""

    columns: list[Column]
    rows: list[ScoreRow]
    older: int

    @property
    def by_topic(self) -> list[tuple[str, list[ScoreRow]]]:
        """Of those topics that there are."""
        found = [(topic, [row for row in self.rows if row.topic == topic]) for topic in TOPICS]
        return [(topic, rows) for topic, rows in found if rows]


def scores_of(runs: Sequence[RunRecord], others: Sequence[Path] = ()) -> Scores | None:
    """All scores of the runs' evaluated checkpoints, the last of each, or of a single run the last ones; and of the evaluations in the
    directories `others`. None where nothing was evaluated; UserError where `others` has no results, or there are too many.
    """
    columns: list[Column] = []
    older = 0
    for place, run in enumerate(runs):
        folders = evaluated(run)
        room = MOST_COLUMNS - len(others) if len(runs) == 1 else 1
        shown = folders[max(0, len(folders) - max(room, 1)) :]
        older += len(folders) - len(shown)
        columns += [_column(f"{run.name} {folder.name}", f"run-{place}", folder) for folder in shown]
    if others:
        for name, folder in zip(names_of([path.resolve() for path in others]), others, strict=True):
            columns.append(_column(name, "", folder))
    if len(columns) > MOST_COLUMNS:
        raise UserError(f"{len(columns)} evaluations: at most {MOST_COLUMNS} fit side by side; name fewer")
    return Scores(columns, list(_rows(columns)), older) if columns else None


def evaluated(run: RunRecord) -> list[Path]:
    """The directories of the run's evaluations, in the order of their steps; those that cannot be read are named in `run.damage`."""
    found = []
    for folder in sorted((run.directory / FOLDER).glob("*/")):
        try:
            read_results(folder)
        except UserError:
            if any(folder.iterdir()) and (damage := f"{FOLDER}/{folder.name}: no results") not in run.damage:
                run.damage.append(damage)
            continue
        found.append(folder)
    return found


def _column(name: str, style: str, folder: Path) -> Column:
    results = read_results(folder)
    return Column(
        name,
        style,
        folder,
        str(mapping(results.get("model")).get("dtype", "")),
        {str(label): mapping(entry) for label, entry in results["tasks"].items()},
        {str(label): mapping(entry) for label, entry in mapping(results.get("averages")).items()},
    )


def _rows(columns: Sequence[Column]) -> Iterator[ScoreRow]:
    differences = [_changes(columns[0], column) for column in columns]
    for label in dict.fromkeys(label for column in columns for label in column.tasks):
        entries = [column.tasks.get(label, {}) for column in columns]
        first: dict[str, Any] = next((entry for entry in entries if entry), {})
        main = str(first.get("main"))
        names = dict.fromkeys(name for entry in entries for name in mapping(entry.get("metrics")))
        for name in sorted(names, key=lambda name: name != main):
            chance = number(first.get("chance")) if name == main else None
            cells = [
                _cell(mapping(entry.get("metrics")).get(name), known.get((label, name)), chance)
                for entry, known in zip(entries, differences, strict=True)
            ]
            yield ScoreRow(
                _topic(entries),
                label if name == main else "",
                name,
                _count(first.get("questions")) if name == main else None,
                _chance(chance),
                cells,
                list(_groups(entries)) if name == main else [],
            )
    for label in dict.fromkeys(label for column in columns for label in column.averages):
        means = [column.averages.get(label) for column in columns]
        yield ScoreRow(
            BENCHMARKS, label, "centred mean", None, "0", [_cell(mean, None, 0.0) for mean in means], []
        )


def _topic(entries: Sequence[dict[str, Any]]) -> str:
    """By what kind of task it is; two parts and the gap between them tell of bias."""
    kinds = [str(entry.get("kind")) for entry in entries]
    if any(kind in _SAFETY_KINDS for kind in kinds):
        return SAFETY
    gaps = any(str(name).endswith("_gap") for entry in entries for name in mapping(entry.get("metrics")))
    return BIAS if gaps or any(kind in _BIAS_KINDS for kind in kinds) else BENCHMARKS


def _groups(entries: Sequence[dict[str, Any]]) -> Iterator[ScoreRow]:
    found = [mapping(entry.get("groups")) for entry in entries]
    for name in dict.fromkeys(str(name) for groups in found for name in groups):
        counts = [_count(mapping(groups.get(name)).get("questions")) for groups in found]
        cells = [_cell(groups.get(name), None, None) for groups in found]
        yield ScoreRow(
            "", name, "", next((count for count in counts if count is not None), None), "", cells, []
        )


def _changes(before: Column, after: Column) -> dict[tuple[str, str], Change]:
    """Nothing for the first column itself, and for one that was asked other things."""
    if before is after:
        return {}
    try:
        return {(one.task, one.metric): one for one in changes(before.folder, after.folder)}
    except (UserError, KeyError, TypeError, ValueError):
        return {}


def _cell(score: Any, change: Change | None, chance: float | None) -> Cell | None:
    told = mapping(score)
    value, low, high = (number(told.get(name)) for name in ("value", "low", "high"))
    if value is None or math.isnan(value):
        return None
    known = low is not None and high is not None and not math.isnan(low + high)
    is_chance = known and chance is not None and low <= chance <= high  # type: ignore[operator]
    interval = f"{_figure(low)} to {_figure(high)}" if known else ""  # type: ignore[arg-type]
    if change is None:
        return Cell(_figure(value), interval, "", "", is_chance)
    verdict = {True: "gain", False: "loss", None: ""}[change.is_better]
    span = "" if change.low is None else f" ({change.low:+.4g} to {change.high:+.4g})"
    return Cell(_figure(value), interval, f"{change.difference:+.4g}{span}", verdict, is_chance)


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"


def _chance(chance: float | None) -> str:
    return "" if chance is None or math.isnan(chance) else _figure(chance)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
