"""Runs that are killed, in a step or in a save, end at once and go on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megalm.checkpoint.directory import list_checkpoints, verify
from megalm.config import Config, dump_config
from megalm.train.callbacks.metrics import read_metrics
from tests.train.runs import ZERO1, events, run_config, step_lines, train_in_world, write_tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc"),
]
DEADLINE = 240  # of anything, on a busy machine
POLL_SECONDS = 0.002  # a save takes some dozens of milliseconds; without a pause the waiting would take a core from the run
END_SECONDS = 60  # from the kill to the launcher's end: a few, and some more on a busy machine
STEPS, INTERVAL = 60, 5
SETTINGS = (
    ZERO1,
    f"train.steps={STEPS}",
    f"checkpoint.interval={INTERVAL}",
    "model.preset=gpt2-tiny",
    "model.hidden_dropout=0.1",
)


def settings(directory: Path, data: Path) -> Config:
    return run_config(directory, data, *SETTINGS)


def launch(directory: Path, data: Path) -> subprocess.Popen[str]:
    """`megalm train` on two processes."""
    config = directory.with_suffix(".yaml")
    dump_config(settings(directory, data), config)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "megalm", "train", str(config), "--nproc", "2"],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = DEADLINE) -> tuple[int, str]:
    """Exit code and standard error."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[dict]:
    """The steps of the run that nobody kills."""
    directory = tmp_path_factory.mktemp("runs") / "undisturbed"
    train_in_world(2, settings(directory, data))
    steps = step_lines(directory)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    return steps


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not happened():
        assert process.poll() is None, f"the run ended before it could be killed: {finish(process)[1]}"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(POLL_SECONDS)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process numbers of the launcher's children by rank."""
    ranks = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0") if parent == process.pid else []
        except OSError:  # it ended meanwhile
            continue
        ranks |= {int(v[5:]): int(entry.name) for v in variables if v.startswith(b"RANK=")}
    return ranks


def last_step(directory: Path) -> int:
    return max(
        (line["step"] for line in read_metrics(directory / "metrics.jsonl") if "loss" in line), default=0
    )


def is_saving(directory: Path) -> bool:
    folder = directory / "checkpoints"
    return folder.is_dir() and any(name.endswith(".tmp") for name in os.listdir(folder))


def state_of(pid: int) -> str:
    """The kernel's letter for a process's state: Z has ended, T is stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def assert_goes_on(directory: Path, data: Path, undisturbed: list[dict]) -> None:
    """The rest of the run gives the curve of the undisturbed one, and no remains are left."""
    train_in_world(2, settings(directory, data))
    assert_has_gone_on(directory, undisturbed)


def assert_has_gone_on(directory: Path, undisturbed: list[dict]) -> None:
    assert step_lines(directory) == undisturbed
    assert not is_saving(directory)
    checkpoints = list_checkpoints(directory)
    assert list(checkpoints)[-1] == STEPS
    assert [verify(path) for path in checkpoints.values()] == [None] * len(checkpoints)


@pytest.mark.parametrize("rank", [0, 1])
def test_run_goes_on_after_one_rank_was_killed_in_a_step(
    tmp_path: Path, data: Path, undisturbed: list[dict], rank: int
) -> None:
    run = tmp_path / "run"
    process = launch(run, data)
    wait_for(process, lambda: last_step(run) >= 2 * INTERVAL + 2)
    ranks = ranks_of(process)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[rank], signal.SIGKILL)
    code, errors = finish(process, END_SECONDS)
    assert code == 1
    assert f"rank {rank} failed (killed by SIGKILL)" in errors
    assert "Traceback" not in errors
    assert [state_of(pid) for pid in ranks.values()] == ["Z", "Z"]
    assert 2 * INTERVAL <= last_step(run) < STEPS
    assert list_checkpoints(run)
    assert_goes_on(run, data, undisturbed)


def test_run_that_is_asked_to_stop_saves_ends_well_and_the_same_command_goes_on(
    tmp_path: Path, data: Path, undisturbed: list[dict]
) -> None:
    run = tmp_path / "run"
    process = launch(run, data)
    wait_for(process, lambda: last_step(run) >= INTERVAL + 2)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process, END_SECONDS)
    assert (code, errors) == (0, "")
    stopped_at = last_step(run)
    assert INTERVAL + 2 <= stopped_at < STEPS
    assert list(list_checkpoints(run))[-1] == stopped_at
    assert events(run)[-1].startswith(f"stopped on request after step {stopped_at}, saved")
    assert finish(launch(run, data)) == (0, "")
    assert_has_gone_on(run, undisturbed)


def stop_in_a_save(process: subprocess.Popen[str], run: Path) -> list[int]:
    """Freeze all processes while a save is unfinished, after some are done; returns their numbers."""
    wait_for(process, lambda: bool(list_checkpoints(run)))
    pids = [process.pid, *ranks_of(process).values()]
    assert len(pids) == 3
    while True:
        wait_for(process, lambda: is_saving(run))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_for(process, lambda: all(state_of(pid) == "T" for pid in pids))
        if is_saving(run):
            return pids
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_run_goes_on_after_all_processes_were_killed_in_a_save(
    tmp_path: Path, data: Path, undisturbed: list[dict]
) -> None:
    run = tmp_path / "run"
    process = launch(run, data)
    pids = stop_in_a_save(process, run)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    code, _ = finish(process, END_SECONDS)
    assert code == -signal.SIGKILL
    assert is_saving(run), "the unfinished save is gone"
    good = list_checkpoints(run)
    assert good and [verify(path) for path in good.values()] == [None] * len(good)
    assert list(good)[-1] < STEPS
    assert_goes_on(run, data, undisturbed)
