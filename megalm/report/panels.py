"""Which figures of a run are drawn, in which order, under which names and units; any other is drawn behind them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from megalm.config.rlhf import RL_TASKS
from megalm.report.figures import Figures, Series
from megalm.report.run import RunRecord

PHASES = ("generate", "score", "train")
_TOKEN_LOSSES = ("pretrain", "mlm", "sft")


class Panel(NamedTuple):
    """A figure's name in the metrics file, its title, the unit of its axis, and what its numbers are multiplied by.

    noisy: a smoothed line is drawn with it. validated: validations measure the same.
    """

    name: str
    title: str
    unit: str
    noisy: bool = True
    scale: float = 1.0
    validated: bool = True


class Group(NamedTuple):
    """Panels that belong together."""

    title: str
    panels: list[Panel]


_SHARE = "share"
_REWARD = "reward, mean of answers"
_LEARNING = [
    Panel("perplexity", "Perplexity", "perplexity"),
    Panel("accuracy", "Accuracy", _SHARE),
    Panel("macro_f1", "Macro F1", "F1"),
    Panel("margin", "Margin", "chosen - rejected"),
    Panel("chosen_reward", "Reward of chosen answers", "reward"),
    Panel("rejected_reward", "Reward of rejected answers", "reward"),
    Panel("calibration_error", "Calibration error", _SHARE),
    Panel("length_correlation", "Correlation of rewards with lengths", "Pearson's r"),
    Panel("rmse", "Error of rewards", "root mean square"),
    Panel("correlation", "Correlation of rewards with ratings", "Pearson's r"),
]
_STEP = [
    Panel("lr", "Learning rate", "learning rate", noisy=False),
    Panel("grad_norm", "Gradient norm", "L2 norm before clipping"),
]
_POLICY = [
    Panel("kl", "KL of answers from the reference", "nats an answer"),
    Panel("kl_coefficient", "Coefficient of the KL", "beta", noisy=False),
    Panel("entropy", "Entropy of the policy", "nats a token"),
    Panel("clipped_low", "Ratios clipped from below", "share of tokens"),
    Panel("clipped_high", "Ratios clipped from above", "share of tokens"),
    Panel("logprob_gap", "Gap of rollout and training", "nats a token"),
]
_VALUES = [
    Panel("value_loss", "Value loss", "half squared error"),
    Panel("explained_variance", "Explained variance of returns", _SHARE),
    Panel("critic_grad_norm", "Gradient norm of the critic", "L2 norm before clipping"),
]
_ANSWERS = [
    Panel("response_length", "Length of answers", "tokens"),
    Panel("finished", "Answers that came to an end", _SHARE),
]
_SPEED = [
    Panel("tokens_per_second", "Speed", "tokens/s"),
    Panel("mfu", "MFU", "% of the devices' rate", scale=100.0),
    Panel("memory_gb", "Memory of rank 0, most so far", "GB", noisy=False),
    Panel("samples_per_second", "Answers a second, all phases", "samples/s"),
    *(Panel(f"{phase}_samples_per_second", f"Answers a second: {phase}", "samples/s") for phase in PHASES),
]


def groups_of(task: str, runs: Sequence[RunRecord]) -> list[Group]:
    """The panels of runs of one family; the last group, if there is one, holds those of all figures that are not known."""
    is_rl = task in RL_TASKS
    loss = Panel("loss", "Loss", "nats a token" if task in _TOKEN_LOSSES else "loss", validated=not is_rl)
    names = list(dict.fromkeys(name for run in runs for name in _names(run)))
    if is_rl:
        parts = [name for name in names if name.startswith("reward_") and name != "reward_std"]
        rewards = [Panel(name, f"Reward: {name.removeprefix('reward_')}", _REWARD) for name in parts]
        spread = Panel("reward_std", "Spread of rewards", "standard deviation")
        groups = [
            Group("Rewards", [Panel("reward", "Reward", _REWARD), *rewards, spread]),
            Group("Policy", [loss, *_POLICY, *_STEP]),
            Group("Value model", _VALUES),
            Group("Answers", _ANSWERS),
        ]
    else:
        groups = [Group("Learning", [loss, *_LEARNING, *_STEP])]
    groups.append(Group("Speed", _SPEED))
    known = {panel.name for group in groups for panel in group.panels}
    groups = [Group(title, [panel for panel in panels if panel.name in names]) for title, panels in groups]
    rest = [Panel(name, name.replace("_", " "), name) for name in names if name not in known]
    return [group for group in groups if group.panels] + ([Group("", rest)] if rest else [])


def with_phases(figures: Figures) -> dict[str, Series]:
    """Training's series, and the samples a second of each phase, of which the file tells the seconds."""
    series = dict(figures.training)
    columns = [series.get(name) for name in ("samples_per_second", *(f"{phase}_seconds" for phase in PHASES))]
    found = [column for column in columns if column is not None]
    if len(found) < len(columns) or any(not np.array_equal(s.steps, found[0].steps) for s in found):
        return series
    speed, *seconds = found
    samples = speed.values * sum(column.values for column in seconds)
    for phase, column in zip(PHASES, seconds, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            series[f"{phase}_samples_per_second"] = Series(column.steps, samples / column.values)
    return series


def _names(run: RunRecord) -> Iterator[str]:
    yield from with_phases(run.figures)
    yield from run.figures.validation
