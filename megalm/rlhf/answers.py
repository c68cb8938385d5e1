"""Prompts with their answers as rows of tokens, and numbers of their tokens, the same on every rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm.engine.base import Engine, MicroBatch, local_samples, split_samples
from megalm.model.gpt import GPT

Floats = NDArray[np.float64]
ROUND = 16
"""Rows are as long as the longest, rounded up to a multiple of this, so that tensor-parallel ranks can share them."""


@dataclass
class Answers:
    """N rows: a prompt, what the model answered, padding; in the form of a batch (see `split_samples`).

    tokens_BS: ids. labels_BS: the token that follows each. loss_mask_BS: 1 where that is a token of the answer. scores: numbers
    of the labels, (N, S), by name.
    """

    tokens_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]
    loss_mask_BS: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens_BS)

    def rows(self, numbers: NDArray[np.int64]) -> "Answers":
        """Some of the rows, in this order."""
        return Answers(
            self.tokens_BS[numbers],
            self.labels_BS[numbers],
            self.loss_mask_BS[numbers],
            {name: score[numbers] for name, score in self.scores.items()},
        )

    @property
    def mask(self) -> Tensor:
        """Boolean (N, S)."""
        return torch.from_numpy(self.loss_mask_BS > 0)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each answer."""
        return (self.loss_mask_BS > 0).sum(1)

    @property
    def last(self) -> NDArray[np.int64]:
        """Where each answer's last token stands in tokens_BS."""
        places = np.arange(self.loss_mask_BS.shape[1])
        return np.where(self.loss_mask_BS > 0, places + 1, 0).max(1)


def answers_of(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int | None, limit: int
) -> Answers:
    """Rows of `length` tokens, or of what the longest needs, of which there are at most `limit`."""
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    if length is None:
        longest = max(map(len, texts))
        length = min(-(-longest // ROUND) * ROUND, limit)
    tokens_BS = np.zeros((len(texts), length + 1), np.int64)
    mask_BS = np.zeros((len(texts), length), np.float32)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        tokens_BS[row, : len(text)] = text
        mask_BS[row, len(prompt) - 1 : len(text) - 1] = 1
    return Answers(tokens_BS[:, :-1], tokens_BS[:, 1:].copy(), mask_BS)


def measure(
    engine: Engine,
    answers: Answers,
    micro_batch_size: int,
    make_head: Callable[[MicroBatch], Callable[[GPT, Tensor], Tensor]],
) -> Floats:
    """What a head makes of each row's tokens, without gradient: (..., N, S), the same on every rank. Collective.

    make_head: gives for a microbatch a `ForwardState.head` with results of shape (..., B, S), alike on tensor-parallel ranks.
    """
    layout = engine.layout
    count, length = answers.tokens_BS.shape
    copies = layout.dp_size * micro_batch_size
    mine = local_samples(-(-count // copies) * copies, layout, micro_batch_size)
    microbatches = split_samples(answers.rows(np.minimum(mine, count - 1)), layout, micro_batch_size)

    def run(model: nn.Module, microbatch: MicroBatch) -> Tensor:
        state = microbatch.forward_state()
        state.head = make_head(microbatch)
        return model(microbatch.tokens_BS, state)

    found = engine.forward(microbatches, run, lambda output, microbatch: output)
    shape = [0] * 8
    if found:
        shape[: found[0].dim()] = found[0].shape
    # each number comes from one rank, so that all see the same to the last bit
    kinds = torch.tensor(shape, device=layout.device)
    dist.all_reduce(kinds, dist.ReduceOp.MAX)
    leading = [size for size in kinds.tolist() if size][:-2]
    whole = torch.zeros(*leading, count, length, dtype=torch.float64, device=layout.device)
    if found and layout.tp_rank == 0:
        for place, (microbatch, output) in enumerate(zip(microbatches, found, strict=True)):
            rows = mine[place * micro_batch_size : (place + 1) * micro_batch_size]
            kept = [number for number, row in enumerate(rows) if row < count]
            context = microbatch.context
            columns = torch.arange(length) if context is None else context.order(torch.device("cpu"))
            for number in kept:
                whole[..., rows[number], columns] = output[..., number, :].double()
    dist.all_reduce(whole)
    return whole.cpu().numpy()
