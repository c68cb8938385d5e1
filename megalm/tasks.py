"""Runs tasks on several processes that die with their parent, and shows how far they are."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Task(NamedTuple):
    """A function of a module with its arguments, and how much of the whole it is."""

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    size: int


def run_tasks(tasks: Sequence[Task], workers: int, advance: Callable[[int], Any]) -> None:
    """Run `tasks`, telling `advance` the size of each as it ends; the first error ends all and is raised."""
    if workers == 1:
        with one_thread():
            for task in tasks:
                task.function(*task.arguments)
                advance(task.size)
        return
    # Not forked: the caller may have threads (torch, tokenizers) that a fork would leave in a broken state.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)
    try:
        with _without_interrupts():
            futures = {pool.submit(task.function, *task.arguments): task for task in tasks}
        for future in as_completed(futures):
            future.result()
            advance(futures[future].size)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process was killed (out of memory?); repeat the command with fewer workers"
        ) from error
    except BaseException:  # Ctrl-C, too: nobody waits for what the others are at
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back; processes that are started meanwhile never hear it, and leave their end to their parent."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with SystemExit, so that what is unfinished is removed on the way out.

    Where the signal has a handler already, or outside of the main thread, nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def progress_bar(title: str, total: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    """Yield a function that moves a bar on stderr by so much."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda amount: progress.advance(bar, amount)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep the tokenizers library to one thread, so that a worker is one core."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    # A worker whose parent was killed would wait for tasks for ever.
    threading.Thread(target=follow, daemon=True).start()
