"""Judges a candidate: better on held-out pairs of answers than the model in service, and at nothing that was asked of both any worse."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megalm.checkpoint.directory import find_checkpoint
from megalm.errors import UserError
from megalm.lineage.record import model_hash
from megalm.release import benchmarks, preference
from megalm.release.benchmarks import Compared
from megalm.release.file import Version, checkpoint_of, read_release
from megalm.release.grouping import grouped
from megalm.release.pairs import read_likelihoods, read_pairs
from megalm.release.preference import Preference
from megalm.release.request import JudgeRequest


@dataclass(frozen=True)
class Judgement:
    """What was found."""

    candidate: Path
    against: Version
    preference: Preference
    benchmarks: list[Compared]
    certainty: float

    @property
    def reasons(self) -> list[str]:
        """Why the candidate is refused; none: it may be promoted."""
        found, one = [], self.preference
        if not one.is_better(self.certainty):
            found.append(
                f"not shown to be better on the held-out pairs: {one.won} {one.unit} won and {one.lost} lost has p = {one.p_value:.4f}, and "
                f"less than {1 - self.certainty:.4g} is wanted"
            )
        if one.is_behind:
            found.append(
                f"the chosen answers of fewer pairs are the likelier ones: {one.ahead_before:.4f} -> {one.ahead_after:.4f}"
            )
        for each in self.benchmarks:
            if each.is_worse:
                change = each.change
                why = (
                    "worse" if each.margin is None else f"a loss of more than {each.margin:g} is not excluded"
                )
                found.append(
                    f"{change.task} {change.metric}: {change.before:.4f} -> {change.after:.4f}, {why}"
                )
        return found

    def told(self) -> dict[str, Any]:
        """As the release file keeps it."""
        return {
            "judged_against": self.against.number,
            "certainty": self.certainty,
            "preference": self.preference.told(),
            "benchmarks": [each.told() for each in self.benchmarks],
        }


def judge(request: JudgeRequest) -> Judgement:
    """Ask both models for the pairs, and compare the evaluations. Collective; every rank finds the same.

    UserError for whatever is missing, damaged, or belongs to another model.
    """
    version = read_release(request.release).now
    served = checkpoint_of(version)
    candidate = find_checkpoint(request.checkpoint, request.step)
    if model_hash(candidate) == version.lineage:
        raise UserError(
            f"{candidate} is version {version.number}, which is in service: there is nothing to judge"
        )
    pairs = read_pairs(request.pairs)
    compared = benchmarks.compare(request.evaluations, served, candidate, request.margins)
    before, after = (
        read_likelihoods(
            replace(request, checkpoint=str(checkpoint), step=None),
            pairs,
            request.batch_size,
            request.chat_template,
        )
        for checkpoint in (served, candidate)
    )
    found = preference.compare(grouped(pairs, request.certainty), before, after)
    return Judgement(candidate, version, found, compared, request.certainty)


def render(judgement: Judgement) -> str:
    """The table that people read; `!`: in the candidate's way."""
    table = Table("what", "")
    for heading in ("before", "after", "95% interval", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    one = judgement.preference
    better = one.is_better(judgement.certainty)
    moved = f"{one.won} of {one.groups}"
    chance = f"p = {one.p_value:.4f}"
    table.add_row(
        "held-out pairs", f"{one.unit} won", f"{one.lost} lost", moved, chance, "" if better else "!"
    )
    span = _span(one.low, one.high)
    behind = "!" if one.is_behind else ""
    table.add_row("", "chosen likelier", f"{one.ahead_before:.4f}", f"{one.ahead_after:.4f}", span, behind)
    for each in judgement.benchmarks:
        change, way = each.change, "!" if each.is_worse else ""
        span = _span(change.low, change.high)
        table.add_row(change.task, change.metric, f"{change.before:.4f}", f"{change.after:.4f}", span, way)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{low:+.4f} ... {high:+.4f}"
