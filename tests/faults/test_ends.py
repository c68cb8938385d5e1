"""Faults that end a run: it ends soon, the rank is named, and the same command gives the curve of the undisturbed run.

With the launcher's own words and processes: tests/kill and tests/watch.
"""

import time
from pathlib import Path
from typing import Any

import pytest

from megalm.checkpoint import list_checkpoints
from megalm.checkpoint.directory import verify
from megalm.config import Config
from megalm.testing import RankError, run_distributed
from tests.faults import moments
from tests.faults.moments import BAD_SAVE, BAD_STEP, MOMENTS, STEPS, Act, settings, train_until
from tests.train.runs import events, step_lines, train_in_world

Steps = list[dict[str, Any]]
HANG_SECONDS = 3
END_SECONDS = 60  # from the fault to the end of all ranks: a few, and more on a busy machine


def fails(config: Config, rank: int, moment: str, act: Act) -> RankError:
    """The error of a run in which `rank` does `act`."""
    begin = time.monotonic()
    with pytest.raises(RankError) as caught:
        run_distributed(train_until, 2, config, rank, moment, act)
    assert time.monotonic() - begin < END_SECONDS
    return caught.value


def goes_on(config: Config, undisturbed: Steps) -> None:
    """The same command brings the run to its end as if nothing had happened."""
    assert len(step_lines(Path(config.run.dir))) < STEPS
    train_in_world(2, config)
    assert step_lines(Path(config.run.dir)) == undisturbed
    checkpoints = list_checkpoints(config.run.dir)
    assert list(checkpoints)[-1] == STEPS
    assert [verify(path) for path in checkpoints.values()] == [None] * len(checkpoints)
    assert not list((Path(config.run.dir) / "checkpoints").glob(".*"))


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_ends_the_run_which_goes_on(
    tmp_path: Path, data: Path, undisturbed: Steps, rank: int, moment: str
) -> None:
    config = settings(tmp_path, data)
    error = fails(config, rank, moment, moments.kill)
    assert error.rank == rank and "killed by SIGKILL" in str(error)
    goes_on(config, undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_rank_is_named_with_its_stack_and_the_run_goes_on(
    tmp_path: Path, data: Path, undisturbed: Steps, rank: int, moment: str
) -> None:
    config = settings(tmp_path, data, f"watch.hang_seconds={HANG_SECONDS}")
    said = str(fails(config, rank, moment, moments.stop))
    assert f"rank {rank} (" in said and "is stopped (state T)" in said
    # a save is written by a thread, which goes on for the moment in which the main thread tells the stacks
    assert ("in _run_steps" if moment == "save" else "in stop") in said, "the stack of the rank that hangs"
    assert f"rank {1 - rank} wait(s) in all" in said
    (event,) = [event for event in events(tmp_path) if event.startswith("hang: ")]
    assert "is stopped (state T)" in event and f"rank {rank} (" in event
    goes_on(settings(tmp_path, data), undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
def test_run_that_is_asked_to_end_saves_and_goes_on(
    tmp_path: Path, data: Path, undisturbed: Steps, moment: str
) -> None:
    config = settings(tmp_path, data)
    results = run_distributed(train_until, 2, config, 1, moment, moments.ask_to_end)
    assert BAD_SAVE <= results[0]["step"] <= BAD_STEP + 1
    assert list(list_checkpoints(tmp_path))[-1] == results[0]["step"]
    assert events(tmp_path)[-1].startswith("stopped on request after step")
    goes_on(config, undisturbed)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("harm", [moments.truncate_and_kill, moments.flip_and_kill])
def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, data: Path, undisturbed: Steps, harm: Act, moment: str
) -> None:
    config = settings(tmp_path, data)
    assert "killed by SIGKILL" in str(fails(config, 1, moment, harm))
    newest = max(list_checkpoints(tmp_path))
    goes_on(config, undisturbed)
    (event,) = [event for event in events(tmp_path) if "is set aside" in event]
    assert f"step_{newest:08d}" in event
