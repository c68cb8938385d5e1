"""Faults that a run goes on through: storage that fails for a while, and numbers that are not finite."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megalm.checkpoint import list_checkpoints
from megalm.checkpoint.directory import verify
from megalm.config import Config
from megalm.testing import RankError, run_distributed
from tests.faults import disks
from tests.faults.moments import BAD_STEP, MOMENTS, STEPS, settings, train_until
from tests.train.runs import events, step_lines, train_in_world

Steps = list[dict[str, Any]]
LATER = BAD_STEP + 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "disk") as folder:
        yield folder


def assert_complete(directory: Path, undisturbed: Steps) -> None:
    """All steps were made, once, and written down; what was saved is whole, and nothing else takes room."""
    assert step_lines(directory) == undisturbed
    checkpoints = list_checkpoints(directory)
    assert list(checkpoints)[-1] == STEPS
    assert [verify(path) for path in checkpoints.values()] == [None] * len(checkpoints)
    assert not list((directory / "checkpoints").glob(".*"))


def assert_alarmed(directory: Path, why: str) -> None:
    told = events(directory)
    failed = [event for event in told if event.startswith("alarm: checkpoint of step")]
    assert failed and all(why in event for event in failed)
    assert sum("the first after" in event for event in told) == 1


@pytest.mark.parametrize("moment", MOMENTS)
def test_full_disk_pauses_saving_and_training_goes_on(
    disk: Path, data: Path, undisturbed: Steps, moment: str
) -> None:
    config = settings(disk, data)
    results = run_distributed(train_until, 2, config, 0, moment, disks.fill, (LATER, disks.make_room))
    assert results[0]["step"] == STEPS
    assert_complete(disk, undisturbed)
    assert_alarmed(disk, "No space left on device")


@pytest.mark.parametrize("moment", MOMENTS)
def test_files_that_may_not_grow_pause_saving_and_training_goes_on(
    tmp_path: Path, data: Path, undisturbed: Steps, moment: str
) -> None:
    """Of rank 1, which writes a part of each checkpoint, and none of the logs."""
    config = settings(tmp_path, data)
    then = (LATER + 1, disks.lift_limit)
    run_distributed(train_until, 2, config, 1, moment, disks.limit_files, then)
    assert_complete(tmp_path, undisturbed)
    assert_alarmed(tmp_path, "rank 1 could not write: ")


def test_run_that_ends_on_a_full_disk_says_so_and_the_same_command_goes_on(
    disk: Path, data: Path, undisturbed: Steps
) -> None:
    config = settings(disk, data)
    with pytest.raises(RankError, match="UserError: .* could not be saved .*: make room, then give the same"):
        run_distributed(train_until, 2, config, 0, "step", disks.fill)
    disks.make_room(config)
    train_in_world(2, config)
    assert_complete(disk, undisturbed)


def test_save_is_not_begun_where_the_last_one_would_not_fit_again(disk: Path, data: Path) -> None:
    """A disk that has room for some bytes more, so that writing would begin well."""

    config = settings(disk, data, "checkpoint.keep_last=1")
    results = run_distributed(train_until, 2, config, 0, "step", leave_little, (LATER, disks.make_room))
    assert results[0]["step"] == STEPS
    assert any("GB are free, the last checkpoint took" in event for event in events(disk))


def leave_little(config: Config) -> None:
    disks.fill(config)
    filler = Path(config.run.dir) / disks.FILLER
    with open(filler, "r+b") as file:
        file.truncate(filler.stat().st_size - 65536)


@pytest.mark.parametrize("moment", MOMENTS)
def test_logs_that_cannot_be_written_do_not_end_a_run_and_come_later(
    tmp_path: Path, data: Path, undisturbed: Steps, moment: str
) -> None:
    config = settings(tmp_path, data)
    then = (LATER, disks.take_logs_again)
    run_distributed(train_until, 2, config, 0, moment, disks.refuse_logs, then)
    assert_complete(tmp_path, undisturbed)
    told = [event for event in events(tmp_path) if event.startswith("alarm: MetricsFile cannot write")]
    assert len(told) == 1 and "No space left on device" in told[0]


def train_with_all_callbacks(config: Config) -> dict[str, Any]:
    """As `megalm train` does, with what else writes logs."""
    from megalm.train import run

    return run.main(config)


def test_log_directory_that_cannot_be_written_does_not_end_a_run(tmp_path: Path, data: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    with disks.read_only(tmp_path / "tensorboard"), disks.read_only(tmp_path / "metrics.jsonl"):
        config = settings(tmp_path, data, "logging.tensorboard=true", "logging.plot=true")
        assert run_distributed(train_with_all_callbacks, 2, config)[0]["step"] == STEPS
        assert not list((tmp_path / "tensorboard").iterdir())
    assert list(list_checkpoints(tmp_path))[-1] == STEPS
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_that_is_full_is_told_in_the_metrics(tmp_path: Path, data: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    with disks.read_only(tmp_path / "tensorboard"):
        config = settings(tmp_path, data, "logging.tensorboard=true")
        run_distributed(train_with_all_callbacks, 2, config)
    told = [event for event in events(tmp_path) if event.startswith("alarm: TensorBoard cannot write")]
    assert len(told) == 1 and "Read-only file system" in told[0]
