"""Log-probabilities of continuations, in batches of like lengths, whatever ranks the model is spread over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from torch import Tensor, nn

from megalm.engine.base import Engine, MicroBatch, split_samples
from megalm.evaluate.encode import Likelihood, Pair
from megalm.evaluate.model import Found
from megalm.evaluate.packing import STEM, Batch, batch_of, batches_of, rows_of
from megalm.model.state import ForwardState

CHUNK = 256
"""Places whose logits are held at a time."""


def likelihoods(
    engine: Engine,
    pairs: Sequence[Pair],
    length: int,
    batch_size: int,
    found: Callable[[Found], None],
) -> None:
    """Tell `found` the likelihoods of pairs, with their numbers, a batch of each copy of the model at a time. Collective.

    length: tokens that the model takes; of longer pairs the beginning is left out. batch_size: continuations of one forward pass. A context
    that pairs have in common is computed once. Every rank is told the same. Of a model in training, only when it is `at_rest`.
    """
    layout = engine.layout
    copies = layout.groups.dp_cp  # ranks that share sequences in training hold copies, too
    # ALiBi counts a token's distance in the row, not by its position
    share = engine.config.model.position_embedding != "alibi"
    batches = batches_of(rows_of(pairs, length, share), batch_size)
    for first in range(0, len(batches), copies.size()):
        mine: Found = []
        if (place := first + copies.rank()) < len(batches):
            rows = batches[place]
            batch = batch_of(rows, pairs)
            (microbatch,) = split_samples(batch.arrays, layout, len(rows), whole=True)
            told = engine.forward([microbatch], _Run(batch), lambda output, _: output.cpu().numpy())
            for logprob_Q, likeliest_Q in told:
                mine = [
                    (pair, Likelihood(float(logprob_Q[a:b].sum()), bool(likeliest_Q[a:b].all())))
                    for pair, a, b in batch.spans
                ]
        found(_from_all_ranks(mine if layout.tp_rank == 0 else [], layout.world_size))


def _from_all_ranks(mine: Found, world_size: int) -> Found:
    if world_size == 1:
        return mine
    parts: list[Found] = [[] for _ in range(world_size)]
    dist.all_gather_object(parts, mine)
    return [one for part in parts for one in part]


@dataclass(frozen=True)
class _Run:
    """What `Engine.forward` runs."""

    batch: Batch

    def __call__(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        state = replace(microbatch.forward_state(), segments_BS=None)
        if microbatch.segments_BS is not None:
            state = _Branched(state.positions_BS, causal=False, owner_BS=microbatch.segments_BS)
        device = microbatch.tokens_BS.device
        asked = (self.batch.places_T, self.batch.query_Q, self.batch.label_Q)
        state.head = _Head(*(torch.from_numpy(array).to(device) for array in asked))
        return model(microbatch.tokens_BS, state)


@dataclass
class _Branched(ForwardState):
    """owner_BS: what each token belongs to (see `packing.Batch`); it sees what is before it of its own and of the stem."""

    owner_BS: Tensor | None = None

    def _build_mask(self, queries: int, keys: int, device: torch.device) -> Tensor:
        assert self.owner_BS is not None and queries == keys
        owner_BQ1, owner_B1K = self.owner_BS[:, :, None], self.owner_BS[:, None, :]
        order = torch.arange(keys, device=device)
        before_QK = order <= order[:, None]
        return (((owner_B1K == STEM) | (owner_B1K == owner_BQ1)) & before_QK)[:, None]


@dataclass(frozen=True)
class _Head:
    """A `ForwardState.head` that answers a batch's questions (see `packing.Batch`): (2, Q), log p of each label, and whether it is the likeliest.

    Logits are made for the places asked for alone, `CHUNK` at a time, over the whole vocabulary, and read in float32 (float64 for
    float64). The same on all tensor-parallel ranks.
    """

    places_T: Tensor
    query_Q: Tensor
    label_Q: Tensor

    def __call__(self, model: Any, hidden_states: Tensor) -> Tensor:
        hidden_BSH = model.whole_hidden(hidden_states).transpose(0, 1)
        hidden_TH = hidden_BSH.flatten(0, 1)[self.places_T]
        weight_VH, group = model.output_weight(), model.pg_collection.tp
        wide = torch.promote_types(hidden_TH.dtype, torch.float32)
        answers_2Q = torch.empty(2, len(self.query_Q), dtype=torch.float64, device=hidden_TH.device)
        order_Q = self.query_Q.argsort(stable=True)
        sorted_Q = self.query_Q[order_Q]
        for start in range(0, len(hidden_TH), CHUNK):
            logits_TV = gather_from_tensor_model_parallel_region(
                hidden_TH[start : start + CHUNK] @ weight_VH.T, group=group
            )
            logits_TV = logits_TV[:, : model.real_vocab_size].to(wide)
            bounds = torch.tensor([start, start + len(logits_TV)], device=sorted_Q.device)
            first, last = torch.searchsorted(sorted_Q, bounds).tolist()
            mine = order_Q[first:last]
            rows, labels = self.query_Q[mine] - start, self.label_Q[mine]
            answers_2Q[0, mine] = (logits_TV[rows, labels] - logits_TV.logsumexp(-1)[rows]).double()
            answers_2Q[1, mine] = (logits_TV.argmax(-1)[rows] == labels).double()
        return answers_2Q
