"""Whether a candidate is worse than the model in service at what both were asked by `megalm eval`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalm.checkpoint.directory import fingerprint
from megalm.errors import UserError
from megalm.evaluate.compare import Change, changes, differs_in, read_results
from megalm.evaluate.ideals import shortfall
from megalm.generate.request import DTYPES
from megalm.release.request import Margins


@dataclass(frozen=True)
class Compared:
    """A score of both models. margin: what loss has to be excluded; None: a loss only counts where it is certain."""

    change: Change
    margin: float | None

    @property
    def is_worse(self) -> bool:
        """Whether it stands in the candidate's way.

        With a margin: whether the 95% interval reaches beyond a loss of so much (non-inferiority), or there is no interval.
        """
        change = self.change
        if self.margin is None:
            return change.is_better is False
        before = shortfall(change.metric, change.before)
        if before is None:
            return False
        if change.low is None or change.high is None:
            return True
        ends = (shortfall(change.metric, change.before + end) for end in (change.low, change.high))
        return max(end - before for end in ends if end is not None) > self.margin

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.change.told() | {"margin": self.margin, "worse": self.is_worse}


def compare(
    evaluations: Sequence[tuple[Path, Path]], before: Path, after: Path, margins: Margins
) -> list[Compared]:
    """Each score of the evaluations; of each the directory of the model in service, then the candidate's.

    before, after: the two checkpoints. UserError where an evaluation is of another model, the candidate was asked less or something else,
    or a margin names nothing that was asked.
    """
    found: list[Compared] = []
    names: set[str] = {""}
    for old, new in evaluations:
        _check_model(old, before)
        _check_model(new, after)
        _check_tasks(old, new)
        for change in changes(old, new):
            if not change.paired:
                raise UserError(
                    f"{old} or {new} lacks what {change.task}.{change.metric} scored on the selections of questions (draws/): "
                    "evaluate that model again"
                )
            keys = [f"{change.task}.{change.metric}", change.task, ""]
            names.update(keys)
            margin = next((margins[key] for key in keys if key in margins), None)
            found.append(Compared(change, margin))
    if unknown := [name for name in margins if name not in names]:
        raise UserError(f"--margin {unknown[0]}=...: nothing called so was asked")
    return found


def _check_model(folder: Path, checkpoint: Path) -> None:
    model = read_results(folder).get("model") or {}
    asked = str(model.get("fingerprint"))  # of one that was asked as it was served, there is more in it
    if not any(fingerprint(checkpoint, dtype) in asked for dtype in DTYPES):
        raise UserError(
            f"{folder} is an evaluation of {model.get('checkpoint') or model.get('name', 'some other model')}, not of {checkpoint}: name the right one, or evaluate it: "
            f"megalm eval {checkpoint}"
        )


def _check_tasks(old: Path, new: Path) -> None:
    asked, missing = read_results(new)["tasks"], []
    for name, entry in read_results(old)["tasks"].items():
        if name in asked and (what := differs_in(entry, asked[name])):
            raise UserError(
                f"{new} was not asked the same {what} of {name} as {old}: evaluate both with the same options (--limit, --seed) and files"
            )
        metrics = asked.get(name, {}).get("metrics", {})
        missing += [f"{name}.{metric}" for metric in entry["metrics"] if metric not in metrics]
    if missing:
        raise UserError(
            f"{new} lacks {', '.join(missing)}, which {old} has: ask the candidate the same, or name another evaluation"
        )
