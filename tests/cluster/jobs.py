"""Runs to be launched as jobs, and what tests look at and do to them."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megalm.checkpoint.directory import list_checkpoints
from megalm.cluster.events import events_of
from megalm.cluster.record import folder_of
from megalm.config import dump_config, load_config
from megalm.train.callbacks.metrics import read_metrics
from tests.train.runs import events, run_config, step_lines, train_in_world, write_tokens

ENDLESS = 1_000_000  # steps: the run ends when it is told to
SECONDS = 240.0


def write_config(folder: Path, *overrides: str) -> Path:
    """The configuration of an endless run in folder/run, which saves when it ends."""
    settings = (f"train.steps={ENDLESS}", f"checkpoint.interval={ENDLESS}", *overrides)
    file = folder / "run.yaml"
    dump_config(run_config(folder / "run", write_tokens(folder), *settings), file)
    return file


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> None:
    """Return when `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not happen in {seconds} s: {what}"
        time.sleep(0.1)


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl."""
    if not (run / "metrics.jsonl").exists():
        return 0
    return max((line.get("step", 0) for line in read_metrics(run / "metrics.jsonl")), default=0)


def steps_since_start(run: Path, number: int) -> int:
    """Steps done since the run started for the time `number` (from 1)."""
    if not (run / "metrics.jsonl").exists():
        return 0
    starts, steps = 0, 0
    for line in read_metrics(run / "metrics.jsonl"):
        starts += line.get("event") == "start"
        steps += "loss" in line and starts == number
    return steps


def stops(run: Path) -> list[str]:
    """What the run said when it was told to end."""
    return [event for event in events(run) if event.startswith("stopped")]


def saved(run: Path) -> int:
    """The step of the last save, which is the last step done."""
    last = len(step_lines(run))
    assert list(list_checkpoints(run))[-1] == last
    assert stops(run)[-1].startswith(f"stopped on request after step {last}, saved")
    return last


def job_events(run: Path, kind: str) -> list[dict[str, Any]]:
    """What the run's jobs told of this kind."""
    return [event for event in events_of(folder_of(run)) if event["event"] == kind]


def ranks_of(run: Path) -> dict[int, int]:
    """The processes that train in `run`, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(name[5:]) for name in environment if name.startswith(b"RANK=")]
        if str(folder_of(run) / "config.yaml").encode() in command and ranks:
            found[ranks[0]] = int(process.name)
    return found


def check_curve(run: Path, processes: int, folder: Path, rel: float = 0.0) -> int:
    """Compare every step of `run` with the run of its configuration that nobody disturbs; return how many there are.

    rel: relative difference of losses and gradient norms that is allowed, where the layout was another one for some steps.
    """
    lines = step_lines(run)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    config = load_config(run / "config.yaml", [f"run.dir={folder}", f"train.exit_after_steps={len(lines)}"])
    train_in_world(processes, config)
    for line, expected in zip(lines, step_lines(folder), strict=True):
        for name in ("loss", "grad_norm"):
            assert abs(line.pop(name) - (wanted := expected.pop(name))) <= rel * wanted
        assert line == expected
    return len(lines)


def environment_of_jobs() -> dict[str, str]:
    """What jobs need to find the code and each other on this machine."""
    import sys

    return {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
