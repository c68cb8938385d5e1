"""Runs functions on worlds of gloo processes in tests: `run_distributed(fn, world_size, *args)`.

Importing torch, Megatron-Core and the engines takes seconds, so one process does it once and forks the workers of every world, and a
world serves many calls. Workers see no GPU and use one thread each.
"""

import atexit
import contextlib
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener, Pipe, wait
from pathlib import Path
from typing import Any

import psutil

from megalm import launch
from megalm.errors import UserError

MAX_THREADS = 150  # each group that a call left behind wakes its threads a hundred times a second: time for fresh processes
MAX_WORLDS = 3  # kept alive at once; the one unused for longest makes room
BLAME_SECONDS = 5.0  # a rank that lost a peer waits this long for that peer's own error
LOG_CHARACTERS = 10_000


class RankError(RuntimeError):
    """A rank failed; the message holds its traceback, or how it died and the last it wrote."""

    def __init__(self, rank: int, text: str) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank = rank


def run_distributed(fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 300.0) -> list[Any]:
    """Call `fn(*args)` on every rank of a gloo world of `world_size` processes; returns the results in rank order.

    `fn` is a module-level function (it travels by name), arguments and results are picklable. In it torch.distributed is
    initialised, and Megatron-Core imported with its CPU bindings but without model-parallel groups; groups made there are
    destroyed afterwards. Raises RankError with the first failing rank's traceback, TimeoutError with every stuck rank's
    stack after `timeout` seconds; either way the next call gets fresh processes.
    """
    request = pickle.dumps((list(sys.path), pickle.dumps((fn, args))))
    world = _world(world_size)
    try:
        results = world.call(request, timeout)
    except BaseException:
        _close(world_size)
        raise
    if world.most_threads() > MAX_THREADS:
        _close(world_size)
    return results


_worlds: OrderedDict[int, "_World"] = OrderedDict()
_nursery: "_Nursery | None" = None


def _world(world_size: int) -> "_World":
    global _nursery
    if world_size in _worlds:
        _worlds.move_to_end(world_size)
        return _worlds[world_size]
    while len(_worlds) >= MAX_WORLDS:
        _close(next(iter(_worlds)))
    if _nursery is None:
        _nursery = _Nursery()
        atexit.register(_close_all)
    world = _worlds[world_size] = _World(world_size, _nursery)
    return world


def _close(world_size: int) -> None:
    world = _worlds.pop(world_size, None)
    if world is not None:
        world.kill()


def _close_all() -> None:
    for world_size in list(_worlds):
        _close(world_size)
    if _nursery is not None:
        _nursery.close()


class _Nursery:
    """The test process's end of the process that forks workers."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        command = "import sys; from megalm import testing; testing._nursery_main(int(sys.argv[1]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, str(theirs.fileno())],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.exit_codes: dict[int, int] = {}

    def spawn(self, world_size: int, directory: str) -> None:
        """Fork the workers of a world; returns once all of them exist."""
        self.connection.send((world_size, directory))
        try:
            while (news := self.connection.recv()) is not None:
                self.exit_codes.update([news])
        except (EOFError, ConnectionResetError):
            raise RuntimeError(
                "the process that forks test workers could not start; its error is above"
            ) from None

    def exit_code(self, pid: int, seconds: float) -> int | None:
        """How worker `pid` ended (negative: the signal), or None if it is not known to have ended in time."""
        deadline = time.monotonic() + seconds
        while pid not in self.exit_codes and self.connection.poll(max(0.0, deadline - time.monotonic())):
            self.exit_codes.update([self.connection.recv()])
        return self.exit_codes.get(pid)

    def close(self) -> None:
        self.connection.close()
        self.process.wait()


class _World:
    """The test process's end of one world: a connection to each worker."""

    def __init__(self, world_size: int, nursery: _Nursery) -> None:
        self.nursery = nursery
        self.directory = tempfile.TemporaryDirectory(prefix="megalm-test-")
        self.workers: dict[int, Connection] = {}
        self.pids: dict[int, int] = {}
        self.log_starts: dict[int, int] = {}
        with Listener(str(Path(self.directory.name) / "socket"), "AF_UNIX", backlog=world_size) as listener:
            nursery.spawn(world_size, self.directory.name)
            for _ in range(world_size):
                connection = listener.accept()
                rank, pid = connection.recv()
                self.workers[rank], self.pids[rank] = connection, pid

    def call(self, request: bytes, timeout: float) -> list[Any]:
        for worker in self.workers.values():
            worker.send_bytes(request)
        results = self._collect(time.monotonic() + timeout, timeout)
        self.log_starts = {rank: self._log(rank).stat().st_size for rank in self.workers}
        return results

    def most_threads(self) -> int:
        """Threads of the worker that has most."""
        return max(psutil.Process(pid).num_threads() for pid in self.pids.values())

    def _collect(self, deadline: float, timeout: float) -> list[Any]:
        results: dict[int, Any] = {}
        victims: dict[int, str] = {}
        while len(results) + len(victims) < len(self.workers):
            waiting = [
                self.workers[rank] for rank in self.workers if rank not in results and rank not in victims
            ]
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready and victims:
                break
            if not ready:
                raise TimeoutError(self._stacks(results, timeout))
            for rank in [rank for rank in self.workers if self.workers[rank] in ready]:
                kind, value = self._receive(rank)
                if kind == "error":
                    raise RankError(rank, value + self._output(rank))
                if kind == "victim":
                    victims[rank] = value
                    deadline = min(deadline, time.monotonic() + BLAME_SECONDS)
                else:
                    results[rank] = value
        if victims:
            rank = min(victims)
            raise RankError(rank, victims[rank] + self._output(rank))
        return [results[rank] for rank in sorted(results)]

    def _receive(self, rank: int) -> tuple[str, Any]:
        try:
            kind, value = pickle.loads(self.workers[rank].recv_bytes())
        except (EOFError, ConnectionResetError):
            code = self.nursery.exit_code(self.pids[rank], seconds=5)
            how = "ended" if code is None else f"ended ({launch.describe_exit(code)})"
            raise RankError(rank, how + self._output(rank)) from None
        return kind, pickle.loads(value) if kind == "result" else value

    def _stacks(self, results: dict[int, Any], timeout: float) -> str:
        """Where the ranks that gave no result are, written by their own SIGUSR1 handlers."""
        stuck = [rank for rank in sorted(self.workers) if rank not in results]
        for rank in stuck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids[rank], signal.SIGUSR1)
        time.sleep(0.5)
        return f"no result within {timeout:g} s from ranks {stuck}" + "".join(
            f"\nrank {rank}:{self._output(rank)}" for rank in stuck
        )

    def _log(self, rank: int) -> Path:
        return Path(self.directory.name) / f"rank_{rank}.log"

    def _output(self, rank: int) -> str:
        with open(self._log(rank), "rb") as file:
            file.seek(self.log_starts.get(rank, 0))
            text = file.read().decode(errors="replace").strip()
        return f"\n--- output of rank {rank} ---\n{text[-LOG_CHARACTERS:]}" if text else ""

    def kill(self) -> None:
        for rank, pid in self.pids.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.workers[rank].close()
        self.directory.cleanup()


def _nursery_main(descriptor: int) -> None:
    """Import what every worker needs, then fork workers on request and report how they end."""
    launch.die_with_parent()
    from megalm.parallel import cpu

    cpu.install()
    import torch
    import torch._inductor.compile_fx  # for `train.compile`, and for DeepSpeed, which compiles where it makes its first optimizer

    # with all that a run needs: what is imported here, no worker of any world imports again
    import megalm.engine.build
    import megalm.train.run  # noqa: F401
    from megalm.engine.deepspeed_setup import import_deepspeed

    with contextlib.suppress(UserError):  # it need not be installed
        import_deepspeed(torch.device("cpu"))

    gc.collect()
    gc.freeze()
    connection = Connection(descriptor)
    while True:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection.send((ended[0], os.waitstatus_to_exitcode(ended[1])))
        if not connection.poll(0.05):
            continue
        try:
            world_size, directory = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        port = launch.free_port()
        for rank in range(world_size):
            if os.fork() == 0:
                connection.close()
                _worker_main(rank, world_size, port, directory)
        connection.send(None)


def _worker_main(rank: int, world_size: int, port: int, directory: str) -> None:
    """A forked worker's life; does not return."""
    launch.die_with_parent()
    log = os.open(str(Path(directory) / f"rank_{rank}.log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        _serve(rank, world_size, port, str(Path(directory) / "socket"))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def _serve(rank: int, world_size: int, port: int, address: str) -> None:
    import faulthandler

    import torch
    import torch.distributed as dist

    from megalm.parallel.layout import FLIGHT_RECORDER

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    os.environ.update(launch.rank_environment(rank, world_size, port))
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    os.environ.setdefault(*FLIGHT_RECORDER)
    torch.set_num_threads(1)
    connection = Client(address, "AF_UNIX")
    connection.send((rank, os.getpid()))
    dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            return
        connection.send_bytes(pickle.dumps(_answer(request)))


def _answer(request: bytes) -> tuple[str, Any]:
    """Run one call: ("result", pickled value), or ("error" or "victim", traceback)."""
    import torch

    try:
        sys.path[:], call = pickle.loads(request)
        fn, args = pickle.loads(call)
        random.seed(0)
        torch.manual_seed(0)
        result = pickle.dumps(fn(*args))
        del fn, args
        _clean_up()
        return "result", result
    except Exception as error:
        return "victim" if launch.is_connection_loss(error) else "error", traceback.format_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _clean_up() -> None:
    """Leave the worker as it was before the call: the default group alone, no model-parallel state."""
    import torch
    import torch.distributed as dist
    from megatron.core import num_microbatches_calculator
    from megatron.core.tensor_parallel import random as megatron_random

    from megalm.parallel.groups import destroy_groups

    gc.collect()
    _pass_over_imports()
    dist.barrier()  # a peer may still be using a group
    destroy_groups()
    num_microbatches_calculator.unset_num_microbatches_calculator()
    megatron_random.get_cuda_rng_tracker().reset()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


_modules = 0


def _pass_over_imports() -> None:
    """After an import, keep the collector from looking at all of it again in every call: a tenth of a second each time."""
    global _modules
    if len(sys.modules) != _modules:
        gc.freeze()
        _modules = len(sys.modules)
