"""Where threads stand: this process's, and another one's on this machine that cannot say so itself."""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

# Real-time signals have no meaning of their own; batch systems use SIGUSR1 and SIGUSR2.
SIGNAL = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else None
WAIT_SECONDS = 2.0
LOOK_SECONDS = 0.005  # a process that was stopped is to run no longer than it takes
_WATCH = str(Path(__file__).with_name("hang.py"))
_TORCH = str(Path(torch.__file__).parent)


def own_stacks() -> str:
    """The stacks of all threads of this process, the newest call first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def in_order(stacks: str) -> str:
    """What faulthandler wrote, the main thread first, which it puts last, and without the thread that watches."""
    *others, main = stacks.strip().split("\n\n")
    return "\n".join([main, *(one for one in others if _WATCH not in one)])


def calling_line() -> str:
    """File, line and function of megalm, or else of anything but torch, in which the main thread stands."""
    main = threading.main_thread().ident
    frame = sys._current_frames().get(main) if main is not None else None
    outer = ""
    while frame is not None:
        path, code = Path(frame.f_code.co_filename), frame.f_code
        here = f"{'/'.join(path.parts[-3:])}:{frame.f_lineno} {code.co_name}"
        if "megalm" in path.parts and path.name != "waits.py":
            return here
        if not outer and not str(path).startswith(_TORCH):
            outer = here
        frame = frame.f_back
    return outer


@contextlib.contextmanager
def told_by_signal(path: Path) -> Iterator[None]:
    """Within the block `SIGNAL` makes this process write its main thread's stack to `path`, even where Python's code cannot run.

    Not the other threads': they would run on while they are read, which ends in a segmentation fault now and then.
    """
    if SIGNAL is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        faulthandler.register(SIGNAL, file, all_threads=False)
        try:
            yield
        finally:
            faulthandler.unregister(SIGNAL)


def stack_by_signal(pid: int, path: Path) -> str | None:
    """The main thread's stack of a process of this machine that is within `told_by_signal`, or None if it writes none.

    One that was stopped is let run for that moment and is stopped again.
    """
    if SIGNAL is None:
        return None
    was_stopped = state_of(pid) == "T"
    try:
        before = path.stat().st_size
        _signal_main_thread(pid, SIGNAL)
        if was_stopped:
            os.kill(pid, signal.SIGCONT)
        end, size = time.monotonic() + WAIT_SECONDS, before
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            last, size = size, path.stat().st_size
            if size > before and size == last:
                break
        if was_stopped:
            os.kill(pid, signal.SIGSTOP)
        return path.read_bytes()[before:].decode(errors="replace") or None
    except OSError:
        return None


def _signal_main_thread(pid: int, number: int) -> None:
    """To that thread, which then does nothing before it has taken the signal; where that cannot be, to any."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "tgkill") or library.tgkill(pid, pid, int(number)):
        os.kill(pid, number)


def state_of(pid: int) -> str | None:
    """The kernel's letter for the state of a process of this machine (T: stopped, D: in the kernel), None where there is none."""
    return _of_kernel(pid, 0)


def born(pid: int) -> str:
    """When a process of this machine began, in the kernel's count; "" where there is none."""
    return _of_kernel(pid, 19) or ""


def _of_kernel(pid: int, number: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[number]
    except OSError:
        return None


def describe_state(pid: int) -> str:
    """What that state means for a process that gives no sign of life."""
    if not Path("/proc/self/stat").exists():
        return "gives no sign of life"
    state = state_of(pid)
    if state in (None, "Z", "X"):
        return "is gone"
    if state in ("T", "t"):
        return "is stopped (state T)"
    if state == "D":
        with contextlib.suppress(OSError):
            return f"waits in the kernel (state D, {Path(f'/proc/{pid}/wchan').read_text() or '?'})"
    return f"gives no sign of life (state {state})"
