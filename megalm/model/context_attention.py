"""Attention of a context-parallel rank's tokens: keys and values of whole sequences, gathered where they are needed.

The ranks' keys and values are all-gathered, as in Llama 3 (arXiv:2407.21783, section 3.3.2): grouped-query attention makes them
small, any mask works, and every attention kernel too. Between the forward and the backward pass a rank keeps its own only.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.parallel.context import ContextShare

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
_View: TypeAlias = tuple[torch.Size, tuple[int, ...], int]


def attend_over_context(
    attend: Attend, query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, context: ContextShare
) -> Tensor:
    """Attend from this rank's tokens to all tokens up to each; returns (B, N, S / CP, D).

    All arguments hold this rank's tokens; G are the key/value heads. `attend` maps (B, heads, tokens, D) queries, keys and values to
    (B, N, queries, D), where the queries are the last tokens of the keys: it is called for each chunk. Collective.
    """
    gathered = _Gathered(torch.stack([key_SBGD, value_SBGD]), context)
    prefixes = gathered.prefixes()
    outputs = []
    with gathered.kept_as_share():
        for query_CBND, (key, value) in zip(query_SBND.chunk(2), prefixes, strict=True):
            outputs.append(attend(*(x.permute(1, 2, 0, 3) for x in (query_CBND, key, value))))
    return torch.cat(outputs, 2)


class _Gathered:
    """Keys and values of whole sequences for one layer's forward pass and again for its backward pass."""

    def __init__(self, share_2SBGD: Tensor, context: ContextShare) -> None:
        self.share = share_2SBGD
        self.context = context
        self.whole: Tensor | None = None

    def prefixes(self) -> list[tuple[Tensor, Tensor]]:
        """For each of the rank's chunks, keys and values of all tokens up to its end, (stop, B, G, D)."""
        key, value, longer_key, longer_value = _Prefixes.apply(self.share, self)
        self.share = self.share.detach()
        return [(key, value), (longer_key, longer_value)]

    @contextlib.contextmanager
    def kept_as_share(self) -> Iterator[None]:
        """What the kernels save of the whole sequences' keys and values in here is gathered anew when it is needed."""
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self.whole = None

    def _pack(self, saved: Tensor) -> Tensor | _View:
        assert self.whole is not None
        # not by address: a storage without memory (`megalm plan`) has none
        if saved.untyped_storage()._cdata != self.whole.untyped_storage()._cdata:
            return saved
        return saved.shape, saved.stride(), int(saved.storage_offset())

    def _unpack(self, packed: Tensor | _View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        if self.whole is None:
            self.whole = gather(self.share, self.context)
        return self.whole.as_strided(*packed)


class _Prefixes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, share_2SBGD: Tensor, gathered: _Gathered) -> tuple[Tensor, ...]:
        ctx.gathered = gathered
        gathered.whole = gather(share_2SBGD, gathered.context)
        return tuple(gathered.whole[i, :stop] for _, stop in gathered.context.chunks for i in (0, 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gathered: _Gathered = ctx.gathered
        gathered.whole = None  # the last to need it
        context = gathered.context
        whole = gradients[0].new_zeros(2, context.length, *gradients[0].shape[1:])
        for number, gradient in enumerate(gradients):  # key and value of the one chunk, then of the other
            whole[number % 2, : len(gradient)] += gradient
        return _scatter_sum(whole, context), None


def gather(share_2SBGD: Tensor, context: ContextShare) -> Tensor:
    """Bring the ranks' tokens, on axis 1, together in the order of the sequence. Collective."""
    size = context.group.size()
    ranks = share_2SBGD.new_empty(2 * size, *share_2SBGD.shape[1:])
    dist.all_gather_into_tensor(ranks, share_2SBGD.contiguous(), group=context.group)
    # (key or value, rank, chunk, S / 2 CP, B, G, D)
    ranks = ranks.unflatten(1, (2, -1)).unflatten(0, (size, 2)).transpose(0, 1)
    whole = ranks.new_empty(2, 2 * size, *ranks.shape[3:])
    whole[:, :size] = ranks[:, :, 0]
    whole[:, size:] = ranks[:, :, 1].flip(1)
    return whole.flatten(1, 2)


def _scatter_sum(whole_2SBGD: Tensor, context: ContextShare) -> Tensor:
    """Sum over the ranks what each has found for all tokens; each gets its own tokens of it. Collective."""
    size = context.group.size()
    chunks = whole_2SBGD.unflatten(1, (2 * size, -1)).transpose(0, 1)
    ranks = chunks.new_empty(size, 2, 2, *chunks.shape[2:])
    ranks[:, :, 0] = chunks[:size]
    ranks[:, :, 1] = chunks[size:].flip(0)
    ranks = ranks.flatten(2, 3)
    share = torch.empty_like(ranks[0])
    dist.reduce_scatter_tensor(share, ranks.flatten(0, 1), group=context.group)
    return share
