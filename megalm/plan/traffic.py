"""Counts what a rank sends in collectives, by parallel axis, without sending it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch  # noqa: F401  # registers the operators below
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork, ProcessGroup

from megalm.parallel.layout import Layout

# names of the groups in Megatron-Core's collection, those first that also go by another name where sizes are 1
AXES = {
    "tp": "TP",
    "cp": "CP",
    "ep": "EP",
    "tp_ep": "TP x EP",
    "expt_tp": "TP",
    "pp": "PP",
    "dp": "DP",
    "dp_cp": "DP",
    "expt_dp": "DP",
    "embd": "embedding",
    "pos_embd": "embedding",
    "tp_cp": "TP x CP",
    "tp_dp_cp": "all",
}


class Traffic:
    """Bytes that this rank sends in a step by axis: `each_microbatch` grows with their number, `once` does not.

    What data-parallel ranks send counts as sent once, also where the passes overlap with it; for ZeRO-2 and 3, which send in every
    microbatch, `begin_microbatch` tells them apart.
    Ring algorithms over n ranks: all-reduce 2 (n-1)/n of its tensor, all-gather and reduce-scatter (n-1)/n of the whole.
    """

    def __init__(self, layout: Layout) -> None:
        self.once: Counter[str] = Counter()
        self.each_microbatch: Counter[str] = Counter()
        self._at_begin: list[int] = []
        self._axes: dict[tuple[int, ...], str] = {}
        for name, axis in AXES.items():
            group = getattr(layout.groups, name, None)
            if isinstance(group, dist.ProcessGroup):
                self._axes.setdefault(tuple(dist.get_process_group_ranks(group)), axis)

    def handle(self, function: Any, args: Sequence[Any], where: str) -> list[Tensor]:
        """Count one collective; returns the tensors that were made to receive."""
        name = function._schema.name.removeprefix("c10d::")
        names = [argument.name for argument in function._schema.arguments]
        group = ProcessGroup.unbox(args[names.index("process_group")])
        ranks = dist.get_process_group_ranks(group)
        axis = self._axes.get(tuple(ranks), "other")
        share = (len(ranks) - 1) / len(ranks)
        tensors = _flat(args[0])
        size = sum(t.numel() * t.element_size() for t in tensors)
        sent, received = 0.0, []
        if name == "send":
            sent = size
        elif name.startswith("recv"):
            received = tensors
        elif name.startswith("allreduce"):
            sent = 2 * share * size
        elif name.startswith(("_allgather", "allgather")):
            sent, received = share * size, tensors
        elif name.startswith(("_reduce_scatter", "reduce_scatter")):
            sent = share * sum(t.numel() * t.element_size() for t in _flat(args[1]))
        elif name.startswith("alltoall"):
            sent, received = share * size, tensors
        elif name.startswith(("broadcast", "reduce", "gather", "scatter")):
            sent = share * size
        in_model = where != "other" and axis != "DP"
        (self.each_microbatch if in_model or name == "send" else self.once)[axis] += round(sent)
        return received

    def begin_microbatch(self) -> None:
        """From here on the next microbatch of a step sends."""
        self._at_begin.append(self.once["DP"])

    def of_step(self, counted: int, count: int) -> dict[str, int]:
        """Bytes by axis of a step of `count` microbatches, of which `counted` have been counted."""
        sent = self.once + Counter({axis: n * count // counted for axis, n in self.each_microbatch.items()})
        if count > counted and self._at_begin:
            before, last = self._at_begin[-2:]
            sent["DP"] += (last - before) * (count - counted)
        return dict(sorted(sent.items()))

    @staticmethod
    def result(function: Any, args: Sequence[Any]) -> Any:
        """What the operator returns when the work is done already."""
        work = FakeWork().boxed()
        return work if len(function._schema.returns) == 1 else (args[0], work)


def _flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)]
