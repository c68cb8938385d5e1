"""What an engine is, and what a task gives it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megalm.config.schema import Config
from megalm.model.state import ForwardState
from megalm.parallel.context import ContextShare, context_share
from megalm.parallel.layout import Layout


@dataclass
class MicroBatch:
    """Samples of one forward pass on one data-parallel rank, on its device.

    tokens_BS, labels_BS: int64. loss_mask_BS: weight of each label, float32. positions_BS, segments_BS and context: see
    ForwardState. Under context parallelism S counts this rank's tokens of each sample (`context.order`), but in segments_BS.
    token_types_BS: which segment of a pair a token belongs to. classes_B: class of the text or pair, -1 where it has none.
    teacher_ids_BSK, teacher_logits_BSK: a teacher's largest logits for each label. values_B, lengths_B: what is said of an
    answer, and its tokens. reference_B: its log-probability under a reference. rows_per_sample: so many rows in a row are the
    answers to one prompt. mismatched: the same prompts with others' answers. scores: what else is known of the samples, by
    name: what frozen models say of them, on the stage that needs it (`megalm.train.frozen`), or what came with the batch.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    loss_mask_BS: Tensor
    positions_BS: Tensor | None = None
    segments_BS: Tensor | None = None
    context: ContextShare | None = None
    token_types_BS: Tensor | None = None
    classes_B: Tensor | None = None
    teacher_ids_BSK: Tensor | None = None
    teacher_logits_BSK: Tensor | None = None
    values_B: Tensor | None = None
    lengths_B: Tensor | None = None
    reference_B: Tensor | None = None
    rows_per_sample: int = 1
    mismatched: "MicroBatch | None" = None
    scores: dict[str, Any] = field(default_factory=dict)

    def forward_state(self) -> ForwardState:
        """Positions and documents, as the model wants them."""
        positions_BS = self.positions_BS
        if positions_BS is None and self.context is not None:
            positions_BS = self.context.order(self.tokens_BS.device)[None]
        return ForwardState(positions_BS, self.segments_BS, self.context)


class Loss(Protocol):
    """What a task minimises: sum / weight, both over the whole global batch; of several parts, the sum of their quotients."""

    parts: tuple[str, ...]
    """Names of the parts, () where there is one; with them weights and sums are vectors, an entry a part."""
    figures: tuple[str, ...]
    """Names of what is not minimised, only reported: further entries of weights and sums behind those of the parts."""

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """The microbatch's share of the divisor, a scalar (or vector) known before the forward pass."""

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """Run the model's stage."""

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Turn the last stage's output into the summed loss, a scalar (or vector)."""


@dataclass
class Metrics:
    """What one step did; the same on every rank.

    weight: of the loss's first part. skipped: nothing was updated, because the loss or a gradient was not finite.
    overflow: that was the work of the loss scale, which the loss was multiplied by in fp16, and the next steps mend it.
    more: further figures by name.
    """

    loss: float
    grad_norm: float
    weight: float
    skipped: bool
    overflow: bool = False
    more: dict[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """Runs steps of one model under one layout."""

    config: Config
    layout: Layout
    chunks: list[Any]
    """This process's parts of the model in the order of its layers: one, unless the pipeline is interleaved."""
    model: Any
    """The first of `chunks`."""

    def step(self, microbatches: Sequence[MicroBatch], loss: Loss, lr: float) -> Metrics:
        """Forward, backward, reduce, clip, update; a non-finite loss or gradient skips the update."""

    def forward(
        self,
        microbatches: Sequence[MicroBatch],
        run: Callable[[nn.Module, MicroBatch], Tensor],
        collect: Callable[[Tensor, MicroBatch], Any],
    ) -> list[Any]:
        """Without gradients: what `collect` makes of each output on the last stage; [] on other stages.

        Outputs are of the microbatch's tokens, which under context parallelism are a part of each sample.
        """

    def evaluate(
        self, microbatches: Sequence[MicroBatch], loss: Loss
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Without gradients: (summed loss, weight) of each part over a global batch, the same on every rank."""

    def gather_weights(self) -> None:
        """Bring the weights in `model` up to date with the last step, on all ranks. Collective.

        Updated weights may still be on their way until the next pass through the model. All methods here see to that
        themselves; whoever reads parameters of `model` calls this first.
        """

    def weights_changed(self) -> None:
        """Let training go on from weights that were written into `model`; collective where they are parted."""

    def state(self) -> dict[str, Any]:
        """Sharded tensors, per parameter in the weight's own shape, of the weights and optimizer that this rank writes.

        Copies on the CPU: training may go on while they are written. Collective.
        """

    def empty_state(self, stored: Mapping[str, torch.dtype], with_optimizer: bool) -> dict[str, Any]:
        """What to read of a checkpoint, without memory yet; `stored` maps its tensors' names to their formats."""

    def load(self, portion: Mapping[str, Tensor]) -> None:
        """Take over some of what `empty_state` asked for, read into tensors on the CPU; portions come in its order."""

    counters: dict[str, float]


def local_samples(global_batch_size: int, layout: Layout, micro_batch_size: int) -> NDArray[np.int64]:
    """Which samples of a global batch this data-parallel rank computes, in the order of its microbatches.

    Microbatch m of rank r holds samples (m x DP + r) x micro_batch_size and following, so that every rank holds the
    same number and any layout sees the same set.
    """
    return (
        np.arange(global_batch_size).reshape(-1, layout.dp_size, micro_batch_size)[:, layout.dp_rank].ravel()
    )


def minimised(loss: Loss) -> int:
    """How many of the first entries of its sums a loss consists of; its figures follow."""
    return len(loss.parts) or 1


def named_figures(loss: Loss, numbers: Sequence[float]) -> dict[str, float]:
    """What metrics call the quotients of a loss's sums: `NAME_loss` for each part with a name, then the figures."""
    parts = {f"{name}_loss": number for name, number in zip(loss.parts, numbers, strict=False)}
    return parts | dict(zip(loss.figures, numbers[minimised(loss) :], strict=True))


def quotients(sums: Tensor, weights: Tensor) -> Tensor:
    """Each part's sum / weight; a part that nothing counts in is zero."""
    return sums / torch.where(weights > 0, weights, 1.0).to(sums.dtype)


def split_samples(batch: Any, layout: Layout, micro_batch_size: int, whole: bool = False) -> list[MicroBatch]:
    """Turn samples as numpy arrays, under the names of MicroBatch's fields, into this rank's microbatches.

    They are of its tokens (`whole`: of all tokens, for a model that is `at_rest`) and on its device. The batch may have `scores`, too: arrays (B, S), or (B), by name; it may
    say that it has several `rows_per_sample`, and have another one of as many rows for each microbatch's `mismatched`.
    """
    context = None if whole else context_share(layout, batch.tokens_BS.shape[1])
    rows_per_sample = getattr(batch, "rows_per_sample", 1)
    arrays = {name: array for name, array in vars(batch).items() if isinstance(array, np.ndarray)}
    scores = getattr(batch, "scores", {})
    arrays |= scores
    if "segments_BS" not in arrays:
        # without document resets positions are 0 ... S-1 in every row: the model's fast path
        arrays.pop("positions_BS", None)
    if context is not None:
        order_S = context.order(torch.device("cpu")).numpy()
        unsplit = ("segments_BS", "classes_B")
        # `take`, not an index: that would leave rows that are not contiguous, and the library sums no such tensors
        arrays = {
            name: a if name in unsplit or a.ndim == 1 else a.take(order_S, 1) for name, a in arrays.items()
        }
    rows = micro_batch_size * rows_per_sample
    tensors = [torch.from_numpy(array).to(layout.device).split(rows) for array in arrays.values()]
    found = []
    for parts in zip(*tensors, strict=True):
        named = dict(zip(arrays, parts, strict=True))
        own = {name: named.pop(name) for name in scores}
        found.append(MicroBatch(**named, context=context, rows_per_sample=rows_per_sample, scores=own))
    if getattr(batch, "mismatched", None) is not None:
        for microbatch, other in zip(
            found, split_samples(batch.mismatched, layout, micro_batch_size), strict=True
        ):
            microbatch.mismatched = other
    return found
