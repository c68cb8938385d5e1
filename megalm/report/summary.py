"""Runs at a glance: what each is, how far it came and how fast, and what its validations found."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from megalm.config.rlhf import RL_TASKS
from megalm.html.numbers import counted, duration, percent, short
from megalm.report.figures import start_of
from megalm.report.panels import PHASES
from megalm.report.run import RunRecord

UNKNOWN = "not recorded"


class Fact(NamedTuple):
    """A name and what it is of each run."""

    name: str
    values: list[str]


class Result(NamedTuple):
    """What one run's validations say of a figure: at the first and the last of them; note: the interval, where it is known."""

    first: float
    last: float
    step: int
    note: str


class ResultRow(NamedTuple):
    """A figure, and the result of each run, None where it did not measure it."""

    name: str
    results: list[Result | None]


def facts_of(runs: Sequence[RunRecord]) -> list[Fact]:
    """The rows of the table on top."""
    rows: list[tuple[str, Callable[[RunRecord], str]]] = [
        ("task", lambda run: run.task),
        ("model", model_of),
        ("a step", batch_of),
        ("optimizer", optimizer_of),
        ("engine and layout", layouts_of),
        ("device", device_of),
        ("progress", progress_of),
        ("tokens", lambda run: _last(run, "tokens", counted_whole)),
        ("time of the steps", lambda run: duration(time_of(run)) if time_of(run) else UNKNOWN),
        ("speed, median", speed_of),
        ("skipped steps", lambda run: counted(run.figures.skipped)),
        ("loss of the last step", lambda run: _last(run, "loss", lambda value: f"{value:.4g}")),
    ]
    return [Fact(name, [tell(run) for run in runs]) for name, tell in rows]


def results_of(runs: Sequence[RunRecord]) -> list[ResultRow]:
    """The figures of validations, those of the first run first."""
    names = dict.fromkeys(name for run in runs for name in run.figures.validation)
    rows = [ResultRow(name.replace("_", " "), [result_of(run, name) for run in runs]) for name in names]
    return [row for row in rows if any(row.results)]


def result_of(run: RunRecord, name: str) -> Result | None:
    """The first and the last finite number of a validations' figure."""
    series = run.figures.validation.get(name)
    last, first = (series.last(), series.first()) if series else (None, None)
    if (name == "loss" and run.task in RL_TASKS) or last is None or first is None:
        return None  # the loss there is the negative reward
    step, value = last
    low, high = run.reward.get(f"{name}_low"), run.reward.get(f"{name}_high")
    known = run.reward.get("step") == step and isinstance(low, float) and isinstance(high, float)
    return Result(first, value, step, f"95% interval {low:.3f} to {high:.3f}" if known else "")


def model_of(run: RunRecord) -> str:
    """Architecture and size."""
    if run.parsed is None:
        return UNKNOWN
    model = run.parsed.model
    parts = [f"{model.architecture}, {model.num_layers} layers x {model.hidden_size}"]
    if model.vocab_size:
        parts.append(f"{short(model.num_parameters())} parameters")
    if run.parsed.lora.rank:
        parts.append(f"adapters of rank {run.parsed.lora.rank}")
    return ", ".join(parts)


def batch_of(run: RunRecord) -> str:
    """What is learned from in a step."""
    if run.parsed is None:
        return UNKNOWN
    if run.task in RL_TASKS:
        rollout = run.parsed.rlhf.rollout
        each = rollout.responses_per_prompt
        return f"{rollout.prompts_per_step} prompts, {each} answer{'s' if each > 1 else ''} to each"
    batch = run.parsed.batch
    return f"{batch.global_batch_size} samples of {batch.seq_length} tokens"


def optimizer_of(run: RunRecord) -> str:
    """Rates and precision."""
    if run.parsed is None:
        return UNKNOWN
    optimizer = run.parsed.optimizer
    return f"lr {optimizer.lr:g}, {optimizer.schedule}, {run.parsed.precision.dtype}"


def layouts_of(run: RunRecord) -> str:
    """Of the last start, and how many others there were before."""
    told = [start_of(start) for start in run.figures.starts]
    others = len({*told}) - 1
    if not told:
        return UNKNOWN
    return told[-1] + (f" (before under {others} other{'s' if others > 1 else ''})" if others else "")


def device_of(run: RunRecord) -> str:
    """Of the last start that told it."""
    told = [str(start["device"]) for start in run.figures.starts if "device" in start]
    return told[-1] if told else UNKNOWN


def progress_of(run: RunRecord) -> str:
    """Steps made, of how many, and in how many starts."""
    steps, starts = run.figures.last_step, len(run.figures.starts)
    of = f" of {run.parsed.train.steps:,}" if run.parsed else ""
    return f"{steps:,}{of} steps" + (f", {starts} starts" if starts > 1 else "")


def time_of(run: RunRecord) -> float:
    """Seconds of all logged steps, each counted for those since the line before; 0 where it is not recorded."""
    interval = run.parsed.logging.interval if run.parsed else 1
    names = [f"{phase}_seconds" for phase in PHASES] if run.task in RL_TASKS else ["step_seconds"]
    columns = [run.figures.training[name].values for name in names if name in run.figures.training]
    return interval * float(sum(values[values == values].sum() for values in columns))


def speed_of(run: RunRecord) -> str:
    """Tokens a second and MFU, or answers a second."""
    tokens, mfu = run.figures.median("tokens_per_second"), run.figures.median("mfu")
    samples = run.figures.median("samples_per_second")
    if samples is not None:
        return f"{short(samples)} answers/s"
    if tokens is None:
        return UNKNOWN
    against = next((s["mfu_against"] for s in reversed(run.figures.starts) if "mfu_against" in s), "peak")
    return f"{short(tokens)} tokens/s" + (f", MFU {percent(mfu)} of the {against}" if mfu is not None else "")


def counted_whole(value: float) -> str:
    """A whole number that a series holds as a float."""
    return counted(round(value))


def _last(run: RunRecord, name: str, write: Callable[[float], str]) -> str:
    series = run.figures.training.get(name)
    found = series.last() if series else None
    return write(found[1]) if found else UNKNOWN
