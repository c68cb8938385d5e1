"""Prompts with their answers as rows of tokens, and numbers of their tokens, the same on every rank."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm.config import Config
from megalm.engine.base import Engine, MicroBatch, local_samples, split_samples
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout

Floats = NDArray[np.float64]
CUDA_MULTIPLE = 16
"""Lengths of rows on CUDA are multiples of this: fast kernels, and few shapes for the allocator."""


@dataclass
class Answers:
    """N rows: a prompt, what the model answered, padding; in the form of a batch (see `split_samples`).

    tokens_BS: ids. labels_BS: the token that follows each. loss_mask_BS: 1 where that is a token of the answer. multiple: what
    lengths of rows are divisible by; None where all have to be of length S. scores: numbers of the labels, (N, S), by name.
    """

    tokens_BS: NDArray[np.int64]
    labels_BS: NDArray[np.int64]
    loss_mask_BS: NDArray[np.float32]
    multiple: int | None
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens_BS)

    def rows(self, numbers: NDArray[np.int64]) -> "Answers":
        """Some of the rows, in this order."""
        return Answers(
            self.tokens_BS[numbers],
            self.labels_BS[numbers],
            self.loss_mask_BS[numbers],
            self.multiple,
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

    def shared_out(self, layout: Layout, rows: int) -> list[tuple[NDArray[np.int64], MicroBatch]]:
        """This rank's microbatches of `rows` rows, each after the numbers of its rows.

        Rows of like length stand together, and a microbatch is as long as its longest row, unless the stages of a pipeline send
        all in one size. N is filled up to what the ranks can share with copies of a row, which have no number.
        """
        count, copies = len(self), layout.dp_size * rows
        order = np.argsort(-self.last, kind="stable")
        order = np.pad(order, (0, -count % copies), mode="edge")
        found = []
        for places in local_samples(len(order), layout, rows).reshape(-1, rows):
            batch = self.rows(order[places])
            if self.multiple and layout.pp_size == 1:
                batch._cut()
            [microbatch] = split_samples(batch, layout, rows)
            found.append((order[places[places < count]], microbatch))
        return found

    def _cut(self) -> None:
        """Leave out the columns in which all rows are padding."""
        assert self.multiple
        length = -(-int(self.last.max() + 1) // self.multiple) * self.multiple
        self.tokens_BS = np.ascontiguousarray(self.tokens_BS[:, :length])
        self.labels_BS = np.ascontiguousarray(self.labels_BS[:, :length])
        self.loss_mask_BS = np.ascontiguousarray(self.loss_mask_BS[:, :length])
        self.scores = {name: np.ascontiguousarray(score[:, :length]) for name, score in self.scores.items()}


def answers_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], config: Config) -> Answers:
    """Rows as long as the longest, at most `batch.seq_length`; of just that length where ranks share rows or stages send text, too."""
    texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    length, parallel = config.batch.seq_length, config.parallel
    multiple = None
    if parallel.context_parallel_size == 1:
        # tensor-parallel ranks may share rows
        sizes = (parallel.tensor_model_parallel_size, config.rlhf.critic.tensor_model_parallel_size or 1)
        multiple = math.lcm(*sizes, CUDA_MULTIPLE if torch.cuda.is_available() else 1)
        if not (config.rlhf.policy.ptx_coefficient and parallel.pipeline_model_parallel_size > 1):
            length = min(-(-max(map(len, texts)) // multiple) * multiple, length)
    tokens_BS = np.zeros((len(texts), length + 1), np.int64)
    mask_BS = np.zeros((len(texts), length), np.float32)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        tokens_BS[row, : len(text)] = text
        mask_BS[row, len(prompt) - 1 : len(text) - 1] = 1
    return Answers(tokens_BS[:, :-1], tokens_BS[:, 1:].copy(), mask_BS, multiple)


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
    shared = answers.shared_out(layout, micro_batch_size)

    def run(model: nn.Module, microbatch: MicroBatch) -> Tensor:
        state = microbatch.forward_state()
        state.head = make_head(microbatch)
        return model(microbatch.tokens_BS, state)

    found = engine.forward([one for _, one in shared], run, lambda output, microbatch: output)
    shape = [0] * 8
    if found:
        shape[: found[0].dim()] = found[0].shape
    # each number comes from one rank, so that all see the same to the last bit
    kinds = torch.tensor(shape, device=layout.device)
    dist.all_reduce(kinds, dist.ReduceOp.MAX)
    leading = [size for size in kinds.tolist() if size][:-2]
    whole = torch.zeros(*leading, count, length, dtype=torch.float64, device=layout.device)
    if found and layout.tp_rank == 0:
        for (rows, microbatch), output in zip(shared, found, strict=True):
            context = microbatch.context
            columns = torch.arange(output.shape[-1])
            if context is not None:
                columns = context.order(torch.device("cpu"))
            for number, row in enumerate(rows):
                whole[..., row, columns] = output[..., number, :].double()
    dist.all_reduce(whole)
    return whole.cpu().numpy()
