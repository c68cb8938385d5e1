"""What `torch.cuda` means inside megatron.core on a machine without a GPU: the same names, acting on the CPU.

Megatron-Core's source is compiled with every `torch.cuda` replaced by this module (see `_rewrite.py`); `torch.cuda` itself
is left alone. A name that is not defined here falls through to the real `torch.cuda`, which answers honestly that there is no GPU.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# `isinstance` checks of Float16Module and buffers built by type name: the CPU twins have the same element types.
FloatTensor = torch.FloatTensor
HalfTensor = torch.HalfTensor
BFloat16Tensor = torch.BFloat16Tensor
DoubleTensor = torch.DoubleTensor
LongTensor = torch.LongTensor
IntTensor = torch.IntTensor
ByteTensor = torch.ByteTensor
BoolTensor = torch.BoolTensor


def __getattr__(name: str) -> Any:
    return getattr(torch.cuda, name)


def current_device() -> torch.device:
    """Where layers, buffers and pipeline receives allocate (`device=torch.cuda.current_device()` all over the library)."""
    return torch.device("cpu")


def device_count() -> int:
    """One, as the checkpoint writer takes its rank modulo this number."""
    return 1


def set_device(device: Any) -> None:
    """There is one CPU device, so there is nothing to choose."""


def synchronize(device: Any = None) -> None:
    """CPU kernels have finished when the call returns."""


def manual_seed(seed: int) -> None:
    """Seed the generator that CPU kernels draw from (`torch.manual_seed` would touch other devices too)."""
    torch.default_generator.manual_seed(int(seed))


def get_rng_state(device: Any = None, clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    """The state of the CPU generator: the RNG tracker forks between such states for dropout and initialisation."""
    return torch.default_generator.get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = None, graph_safe: bool = False) -> None:
    """Put the CPU generator into a state that `get_rng_state` returned."""
    torch.default_generator.set_state(new_state)


class Event:
    """A point in time; on the CPU it has always happened once recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self._seconds = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this event to `end_event`."""
        return 1000.0 * (end_event._seconds - self._seconds)


class Stream:
    """A queue of work; on the CPU there is one and it is always drained."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


_STREAM = Stream()


def current_stream(device: Any = None) -> Stream:
    """The one stream."""
    return _STREAM


default_stream = current_stream


def set_stream(stream: Any) -> None:
    """There is one stream, so there is nothing to choose."""


def stream(stream: Stream | None) -> AbstractContextManager[None]:
    """A context in which work is queued on `stream`: here it simply runs."""
    return nullcontext()
