"""Ranks that hang are named under the launcher; work that takes long and whole jobs that are suspended are no hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from megalm.config import Config, dump_config
from megalm.testing import RankError, run_distributed
from tests.kill.test_kill import last_step, ranks_of, state_of, wait_for
from tests.train.runs import PP2, ZERO1, events, run_config, train, write_tokens

HANG = "watch.hang_seconds=3"
END_SECONDS = 90


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("data"))


def launch(config: Config, directory: Path) -> subprocess.Popen[str]:
    """`megalm train` on two processes."""
    dump_config(config, directory / "given.yaml")
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "megalm", "train", str(directory / "given.yaml"), "--nproc", "2"],
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(300)
def test_job_that_is_suspended_goes_on_and_a_stopped_rank_is_named_once(tmp_path: Path, data: Path) -> None:
    """The launcher's words; before that, all processes stand still for longer than a hang may last."""
    config = run_config(tmp_path / "run", data, ZERO1, HANG, "train.steps=100000")
    process = launch(config, tmp_path)
    try:
        wait_for(process, lambda: last_step(tmp_path / "run") >= 5)
        ranks = ranks_of(process)
        for pid in ranks.values():
            os.kill(pid, signal.SIGSTOP)
        time.sleep(8)
        for pid in ranks.values():
            os.kill(pid, signal.SIGCONT)
        reached = last_step(tmp_path / "run")
        wait_for(process, lambda: last_step(tmp_path / "run") > reached + 5)
        os.kill(ranks[0], signal.SIGSTOP)
        _, errors = process.communicate(timeout=END_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 1
    assert errors.count("no progress for") == 1
    assert f"rank 0 ({os.uname().nodename}, process {ranks[0]}) is stopped (state T)" in errors
    assert "rank 1 wait(s) in " in errors and "its stack, the newest call first" in errors
    assert "loop.py" in errors
    assert [state_of(pid) for pid in ranks.values()] == ["Z", "Z"]
    assert [event.startswith("hang: ") for event in events(tmp_path / "run")][-1]


def train_with_slow(config: Config, place: str, seconds: float, rank: int, times: int) -> dict[str, Any]:
    """Train where each microbatch that is validated, or each tensor that is written by `rank`, takes so long, so many times."""
    from megalm.checkpoint import parts
    from megalm.engine.megatron import MegatronEngine

    is_mine, left = int(os.environ["RANK"]) == rank, [times]

    def pause() -> None:
        if is_mine and left[0]:
            left[0] -= 1
            time.sleep(seconds)

    evaluate, really_write = MegatronEngine.evaluate, parts.FileSystemWriterAsync.write_preloaded_data

    def slow_evaluate(*arguments: Any) -> Any:
        if place == "validation":
            pause()
        return evaluate(*arguments)

    def slow_write(transforms: Any, number: int, bucket: Any, *rest: Any, **named: Any) -> Any:
        while place == "save" and is_mine and left[0]:
            pause()
            with open(bucket[0], "ab") as file:  # as a slow disk would let it grow
                file.write(b"\0" * 4096)
        return really_write(transforms, number, bucket, *rest, **named)

    with (
        mock.patch.object(MegatronEngine, "evaluate", slow_evaluate),
        mock.patch.object(parts.FileSystemWriterAsync, "write_preloaded_data", staticmethod(slow_write)),
    ):
        return train(config)


@pytest.mark.parametrize("place", ["validation", "save"])
def test_work_that_takes_long_but_comes_forward_is_no_hang(tmp_path: Path, data: Path, place: str) -> None:
    """Four pauses of 1.2 s where 3 s without progress are a hang, on one rank that the other waits for."""
    settings = (ZERO1, HANG, "checkpoint.interval=4", "checkpoint.async_save=false", "train.eval_interval=4")
    config = run_config(tmp_path, data, *settings, "train.eval_batches=6")
    assert run_distributed(train_with_slow, 2, config, place, 1.2, 1, 4)[0]["step"] == 8
    assert not [event for event in events(tmp_path) if event.startswith("hang")]
    assert not (tmp_path / ".watch").exists()


@pytest.mark.parametrize("setting", [ZERO1, PP2])
def test_a_rank_that_stays_at_its_own_work_is_named(tmp_path: Path, data: Path, setting: str) -> None:
    """It is alive and answers, and the other waits for it in a collective or for its message."""
    config = run_config(tmp_path, data, setting, HANG, "train.eval_interval=4")
    with pytest.raises(RankError):
        run_distributed(train_with_slow, 2, config, "validation", 60, 1, 1)
    (verdict,) = (tmp_path / ".watch").glob("*.txt")
    said = verdict.read_text()
    assert "rank 1 (" in said and "is at `validation`" in said and "and waits for nobody" in said
    assert "in pause" in said and "rank 0 wait(s) in " in said


def test_watch_that_is_off_leaves_nothing(tmp_path: Path, data: Path) -> None:
    assert run_distributed(train, 1, run_config(tmp_path, data, "watch.hang_seconds=0"))[0]["step"] == 8
    assert not (tmp_path / ".watch").exists()
