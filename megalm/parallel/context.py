"""Context parallelism: which tokens of each sequence a rank holds."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.parallel.layout import Layout


@dataclass(frozen=True)
class ContextShare:
    """A rank's part of sequences of `length` tokens: two of 2 x CP equal chunks, as far from the beginning as from the end.

    A token attends to all before it, so that such a pair of chunks costs every rank the same (Llama 3, arXiv:2407.21783,
    section 3.3.2).
    """

    group: dist.ProcessGroup
    length: int

    @property
    def chunks(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(start, stop) of both chunks in the sequence; this rank's tokens are the one, then the other."""
        rank, size = self.group.rank(), self.group.size()
        width = self.length // (2 * size)
        first, last = rank, 2 * size - 1 - rank
        return (first * width, (first + 1) * width), (last * width, (last + 1) * width)

    def order(self, device: torch.device) -> Tensor:
        """Places in the sequence of this rank's tokens, shape (S / CP)."""
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in self.chunks])


def context_share(layout: Layout, length: int) -> ContextShare | None:
    """This rank's share of sequences of `length` tokens; None where no ranks share them."""
    return ContextShare(layout.groups.cp, length) if layout.cp_size > 1 else None
