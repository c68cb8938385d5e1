"""Where the time of profiled steps goes: by phase of the step and by kind of operator."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.autograd import DeviceType

# what the benchmark marks in the profile
STEP, DATA, FORWARD = "megalm.step", "megalm.data", "megalm.forward"
_BACKWARD = "autograd::engine::evaluate_function"
_UPDATE = "Optimizer.step"
PHASES = ("data", "forward", "backward", "reduction", "optimizer", "other")
_COMMUNICATION = re.compile(r"c10d|gloo:|nccl|record_param_comms|ncclDevKernel", re.IGNORECASE)
# the first that matches an operator's name counts
_KINDS = (
    ("communication", _COMMUNICATION),
    ("attention", re.compile(r"attention|flash|softmax|fmha", re.IGNORECASE)),
    ("matmul", re.compile(r"aten::(\w*mm\w*|linear|matmul|einsum|dot|mv)$|gemm", re.IGNORECASE)),
    ("optimizer", re.compile(r"_fused_adam|_foreach|multi_tensor", re.IGNORECASE)),
    (
        "memory",
        re.compile(
            r"aten::(copy_|_to_copy|to|clone|cat|contiguous|empty|zeros|zero_|fill_|stack)", re.IGNORECASE
        ),
    ),
    ("norm and elementwise", re.compile(r"aten::|triton", re.IGNORECASE)),
)
_OUTSIDE = "outside operators"
TOP = 12


@dataclass
class TimeUse:
    """Seconds of one step: the step's, and by phase and kind, which add up to it; of the operators that take longest."""

    seconds: float
    phases: dict[str, float]
    operators: dict[str, float]
    top: dict[str, float]


@dataclass
class _Slice:
    """Time in which one profiler event was the innermost of its thread; microseconds."""

    begin: float
    end: float
    name: str
    ancestors: tuple[str, ...]


def time_use(events: Iterable[Any], cuda: bool) -> TimeUse:
    """Sum up a profile in which each step lies in an event `STEP`.

    On the CPU: time of the thread that runs the steps; what it spends outside of operators while a collective is under way counts as
    communication. On CUDA: time of kernels, by the operators that launched them; the rest of the step is `outside
    operators`, kernels that run at the same time count each.
    """
    events = [event for event in events if event.device_type == DeviceType.CPU]
    steps = [event for event in events if event.name == STEP]
    if cuda:
        slices = _kernel_slices(events)
        busy: list[tuple[float, float]] = []
    else:
        slices = _slices([event for event in events if event.thread == steps[0].thread])
        busy = _union((e.time_range.start, e.time_range.end) for e in events if _COMMUNICATION.search(e.name))
    phases: dict[str, float] = defaultdict(float)
    kinds: dict[str, float] = defaultdict(float)
    names: dict[str, float] = defaultdict(float)
    for step in steps:
        inside = [s for s in slices if step.time_range.start <= s.begin < step.time_range.end]
        update_begins = max((s.end for s in inside if _in_backward(s)), default=step.time_range.start)
        for part in inside:
            length = part.end - part.begin
            kind = _kind(part.name)
            waited = _overlap(part, busy) if kind == _OUTSIDE else 0.0
            for share, of in ((length - waited, kind), (waited, "communication")):
                phases[_phase(part, of, update_begins)] += share
                kinds[of] += share
            if kind != _OUTSIDE:
                names[part.name] += length
    whole = sum(step.time_range.end - step.time_range.start for step in steps)
    phases["other"] += max(0.0, whole - sum(phases.values()))
    kinds[_OUTSIDE] += max(0.0, whole - sum(kinds.values()))
    scale = 1e6 * len(steps)
    return TimeUse(
        seconds=whole / scale,
        phases={name: phases[name] / scale for name in PHASES},
        operators={name: size / scale for name, size in _largest(kinds) if size},
        top={name: size / scale for name, size in _largest(names)[:TOP]},
    )


def _slices(events: Sequence[Any]) -> list[_Slice]:
    """The timeline of one thread, cut wherever its innermost event changes."""
    found: list[_Slice] = []
    stack: list[Any] = []
    now = 0.0

    def advance(until: float) -> None:
        nonlocal now
        if stack and until > now:
            names = tuple(event.name for event in stack)
            found.append(_Slice(now, until, names[-1], names))
        now = max(now, until)

    # of two that begin together the longer one lies outside
    for event in sorted(events, key=lambda e: (e.time_range.start, -e.time_range.end)):
        while stack and stack[-1].time_range.end <= event.time_range.start:
            advance(stack[-1].time_range.end)
            stack.pop()
        advance(event.time_range.start)
        stack.append(event)
    while stack:
        advance(stack[-1].time_range.end)
        stack.pop()
    return found


def _kernel_slices(events: Sequence[Any]) -> list[_Slice]:
    """A kernel's time, put where its operator began."""
    found = []
    for event in events:
        for kernel in event.kernels:
            names = [event.name]
            parent = event.cpu_parent
            while parent is not None:
                names.append(parent.name)
                parent = parent.cpu_parent
            name = kernel.name if _COMMUNICATION.search(kernel.name) else event.name
            begin = event.time_range.start
            found.append(_Slice(begin, begin + kernel.duration, name, tuple(reversed(names))))
    return found


def _kind(name: str) -> str:
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), _OUTSIDE)


def _phase(part: _Slice, kind: str, update_begins: float) -> str:
    if DATA in part.ancestors:
        return "data"
    if _in_backward(part):
        return "backward"
    if FORWARD in part.ancestors:
        return "forward"
    if kind == "communication":
        return "reduction"
    after = part.begin >= update_begins
    return "optimizer" if after or any(name.startswith(_UPDATE) for name in part.ancestors) else "other"


def _in_backward(part: _Slice) -> bool:
    return any(name.startswith(_BACKWARD) for name in part.ancestors)


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _largest(sizes: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(sizes.items(), key=lambda item: -item[1])


def _overlap(part: _Slice, intervals: Sequence[tuple[float, float]]) -> float:
    return sum(max(0.0, min(part.end, end) - max(part.begin, begin)) for begin, end in intervals)
