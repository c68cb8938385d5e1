"""A world of processes starts, fails and stops as one, and shows the error that began it, once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megalm.errors import UserError
from megalm.launch import available_cores, describe_exit, guard, is_connection_loss

WORKER = Path(__file__).with_name("launch_worker.py")
LAUNCHER = """
import sys
from megalm.launch import supervise
sys.exit(supervise([sys.executable, *sys.argv[2:]], int(sys.argv[1])))
"""
DEADLINE = 120


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the tree importable and no world around it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return kept | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | changes


def start(mode: str, folder: Path, nproc: int = 2, **changes: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(nproc), str(WORKER), mode, str(folder)],
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(mode: str, folder: Path, nproc: int = 2, **changes: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a world."""
    process = start(mode, folder, nproc, **changes)
    out, err = process.communicate(timeout=DEADLINE)
    return process.returncode, out, err


def wait_until(condition) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def waiting_ranks(folder: Path) -> list[int]:
    """The process numbers of two ranks that have come to wait."""
    files = [folder / "pid_0", folder / "pid_1"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def test_every_rank_finds_its_place_in_the_environment(tmp_path):
    code, _, err = run("environment", tmp_path, nproc=3, OMP_NUM_THREADS="5")
    assert code == 0 and err == ""
    ranks = [(tmp_path / f"rank_{rank}").read_text().split() for rank in range(3)]
    assert [rank[:5] for rank in ranks] == [[str(n), str(n), "3", "3", "127.0.0.1"] for n in range(3)]
    assert len({rank[5] for rank in ranks}) == 1
    assert {rank[6] for rank in ranks} == {"5"}


def test_threads_are_shared_out_unless_the_user_has_said_how_many(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run("environment", tmp_path)[0] == 0
    assert (tmp_path / "rank_1").read_text().split()[6] == str(max(1, available_cores() // 2))


def test_output_of_rank_0_passes_and_of_others_does_not(tmp_path):
    assert run("environment", tmp_path) == (0, "rank 0 speaks\n", "")


@pytest.mark.parametrize("rank", [0, 1])
def test_first_failure_is_shown_once_and_its_consequences_are_not(tmp_path, rank):
    code, _, err = run(f"rank-{rank}-raises", tmp_path)
    assert code == 1
    assert err.startswith(f"rank {rank} failed (exit code 1):\nTraceback")
    assert err.count("ValueError: the first failure") == 1
    assert err.count("Traceback") == 1 and "peer" not in err


def test_failure_that_came_first_is_shown_and_not_what_followed_from_it(tmp_path):
    code, _, err = run("rank-0-fails-after-rank-1", tmp_path)
    assert code == 1
    assert err.startswith("rank 1 failed") and "the first failure" in err
    assert "the consequence" not in err


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_rank_is_named_with_its_signal(tmp_path, rank):
    code, _, err = run(f"rank-{rank}-dies", tmp_path)
    assert code == 1
    assert err.startswith(f"rank {rank} failed (killed by SIGKILL)")
    assert "Traceback" not in err and "peer" not in err


def test_mistake_that_all_ranks_make_is_shown_once(tmp_path):
    code, _, err = run("all-raise", tmp_path, nproc=3)
    assert code == 1
    assert err.count("ValueError: the same mistake") == 1


@pytest.mark.parametrize("mode", ["all-user-error", "rank-1-user-error"])
def test_user_error_of_any_rank_is_one_line_and_code_2(tmp_path, mode):
    code, _, err = run(mode, tmp_path)
    assert (code, err) == (2, "megalm: error: a wrong setting\n")


def test_exit_code_of_a_rank_that_leaves_without_an_exception_is_named(tmp_path):
    code, _, err = run("rank-1-exits", tmp_path)
    assert code == 1
    assert err == "rank 1 failed (exit code 3):\nrank 1 speaks\n"


def test_rank_that_ignores_sigterm_is_killed(tmp_path):
    code, _, err = run("rank-1-ignores-sigterm", tmp_path)
    assert code == 1 and "the first failure" in err
    assert not is_running(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_request_to_stop_ends_every_rank(tmp_path, number, code):
    process = start("wait", tmp_path)
    pids = waiting_ranks(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert not any(map(is_running, pids))


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path):
    process = start("wait", tmp_path)
    pids = waiting_ranks(tmp_path)
    process.kill()
    process.communicate(timeout=DEADLINE)
    wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize(
    ("mode", "said", "unsaid"),
    [
        ("rank-1-raises", "rank 1: Traceback", "rank 0:"),
        (
            "all-user-error",
            "megalm: error: a wrong setting",
            'Traceback (most recent call last):\n  File "' + str(WORKER),
        ),
    ],
    ids=["failure", "user-error"],
)
def test_torchrun_shows_the_first_failure_once_too(tmp_path, mode, said, unsaid):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(WORKER), mode, str(tmp_path)],
        env=environment(GLOO_SOCKET_IFNAME="lo"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode != 0
    assert done.stderr.count(said) == 1
    assert unsaid not in done.stderr and "closed by peer" not in done.stderr


def raised(raiser) -> BaseException:
    try:
        raiser()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def lose_peer() -> None:
    raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4242")


def wrap_lost_peer() -> None:
    try:
        lose_peer()
    except RuntimeError as error:
        raise KeyError("step") from error


def lose_peer_while_cleaning_up() -> None:
    try:
        raise ValueError("the cause")
    finally:
        lose_peer()


def test_connection_loss_is_told_by_the_error_that_began_it():
    assert is_connection_loss(raised(lose_peer))
    assert is_connection_loss(raised(wrap_lost_peer))
    assert not is_connection_loss(raised(lose_peer_while_cleaning_up))
    assert not is_connection_loss(ValueError("Connection closed by peer"))
    assert not is_connection_loss(RuntimeError("shape mismatch"))


def test_guard_leaves_exceptions_alone_outside_a_world(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="mine"), guard():
        raise UserError("mine")


def test_exit_codes_read_as_words():
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "killed by SIGKILL"
