"""Answers that a run wrote down: of its first, middle and last step, and the best and the worst of all."""

import heapq
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megalm import run_files
from megalm.report.json_lines import mapping, number, read_objects
from megalm.report.run import RunRecord

MOST_OF_A_STEP = 8
MOST_EXTREME = 5
LONGEST = 2000
"""Characters of a text that are shown."""


class Sample(NamedTuple):
    """An answer with what was said of it. parts: each reward by its title. reward: NaN where there was none."""

    step: int
    prompt: str
    answer: str
    reward: float
    parts: dict[str, float]
    references: list[str]
    tokens: int | None
    finish_reason: str


class Table(NamedTuple):
    """Samples under a heading, and how many the steps had more."""

    title: str
    samples: list[Sample]
    more: int


class Tables(NamedTuple):
    """Samples of one run, the titles of their rewards, and what the file they come from holds."""

    run: str
    is_rewarded: bool
    titles: list[str]
    tables: list[Table]
    answers: int
    steps: int


def tables_of(runs: Sequence[RunRecord]) -> list[Tables]:
    """The samples of all runs: those that were rewarded, then those that were written at validations."""
    found = [_tables(run.name, run.directory / run_files.ROLLOUTS, True) for run in runs]
    found += [_tables(run.name, run.directory / run_files.SAMPLES, False) for run in runs]
    return [tables for tables in found if tables.answers]


def _tables(run: str, path: Path, is_rewarded: bool) -> Tables:
    """Reads twice: a file of a long run may be larger than the memory."""
    steps: dict[int, int] = {}
    titles: dict[str, None] = {}
    for sample in _samples(path):
        steps[sample.step] = steps.get(sample.step, 0) + 1
        titles |= dict.fromkeys(sample.parts)
    order = sorted(steps)
    chosen = {order[place] for place in (0, len(order) // 2, -1)} if order else set()
    of_step: dict[int, list[Sample]] = {step: [] for step in sorted(chosen)}
    # the number breaks ties of equal rewards: the earlier one comes first
    best: list[tuple[float, int, Sample]] = []
    worst: list[tuple[float, int, Sample]] = []
    for place, sample in enumerate(_samples(path)):
        if len(kept := of_step.get(sample.step, [])) < MOST_OF_A_STEP:
            kept.append(sample)
        if math.isfinite(sample.reward):
            _keep(best, (sample.reward, -place, sample))
            _keep(worst, (-sample.reward, -place, sample))
    tables = [Table(f"Step {step:,}", kept, steps[step] - len(kept)) for step, kept in of_step.items()]
    for title, heap in (("Best answers", best), ("Worst answers", worst)):
        tables += [Table(title, [entry[2] for entry in sorted(heap, reverse=True)], 0)] if heap else []
    return Tables(run, is_rewarded, list(titles), tables, sum(steps.values()), len(steps))


def _keep(heap: list[tuple[float, int, Sample]], entry: tuple[float, int, Sample]) -> None:
    (heapq.heappush if len(heap) < MOST_EXTREME else heapq.heappushpop)(heap, entry)


def _samples(path: Path) -> Iterator[Sample]:
    """The samples of a file in their order; lines that are none are left out."""
    for line in read_objects(path):
        if line is not None and type(line.get("step")) is int:
            yield _sample(line)


def _sample(line: dict[str, Any]) -> Sample:
    parts = {str(title): number(value) for title, value in mapping(line.get("rewards")).items()}
    reward, tokens, references = number(line.get("reward")), line.get("tokens"), line.get("references")
    return Sample(
        step=line["step"],
        prompt=str(line.get("prompt", "")),
        answer=str(line.get("answer", "")),
        reward=math.nan if reward is None else reward,
        parts={title: value for title, value in parts.items() if value is not None},
        references=[str(text) for text in references] if isinstance(references, list) else [],
        tokens=tokens if isinstance(tokens, int) else None,
        finish_reason=str(line.get("finish_reason", "")),
    )
