"""What the ranks of tests/test_launch.py run: `launch_worker.py MODE [FOLDER]`."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from megalm.atomic import write_text
from megalm.errors import UserError
from megalm.launch import guard


def main(mode: str, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    print(f"rank {rank} speaks", flush=True)
    if mode == "environment":
        names = (
            "RANK",
            "LOCAL_RANK",
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
            "OMP_NUM_THREADS",
        )
        (folder / f"rank_{rank}").write_text(" ".join(os.environ[name] for name in names))
    elif mode == "all-raise":
        meet(folder)
        raise ValueError("the same mistake")
    elif mode == "all-user-error":
        meet(folder)
        raise UserError("a wrong setting")
    elif mode == "rank-0-fails-after-rank-1":
        if rank == 1:
            raise ValueError("the first failure")
        wait_until((Path(os.environ["MEGALM_ERROR_DIR"]) / "rank_1.json").exists)
        raise KeyError("the consequence")
    elif mode == "rank-1-user-error":
        if rank == 1:
            raise UserError("a wrong setting")
        wait()
    elif mode == "rank-1-exits":
        if rank == 1:
            sys.exit(3)
        wait()
    elif mode == "rank-1-ignores-sigterm":
        pid = folder / "pid"
        if rank == 0:
            wait_until(pid.exists)
            raise ValueError("the first failure")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write_text(pid, str(os.getpid()))
        wait()
    elif mode == "wait":
        (folder / f"pid_{rank}").write_text(str(os.getpid()))
        wait()
    else:
        collective(mode, rank)


def collective(mode: str, rank: int) -> None:
    """Ranks that really talk: the peer of the one that fails is in an all-reduce."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1))
    if mode == f"rank-{rank}-raises":
        raise ValueError("the first failure")
    if mode == f"rank-{rank}-dies":
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def meet(folder: Path) -> None:
    """Go on when every rank has come here."""
    (folder / f"here_{os.environ['RANK']}").touch()
    for rank in range(int(os.environ["WORLD_SIZE"])):
        wait_until((folder / f"here_{rank}").exists)


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def wait() -> None:
    while True:
        signal.pause()


if __name__ == "__main__":
    with guard():
        main(sys.argv[1], Path(sys.argv[2]))
