"""How each parameter of ours is made of another project's tensors, and they of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megalm.config.model import ModelConfig


def _only(tensors: Sequence[Tensor]) -> Tensor:
    (tensor,) = tensors
    return tensor


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """One parameter of the whole model without padding, and the tensors elsewhere that hold the same numbers.

    `join` makes ours of theirs and `split` theirs of ours; each undoes the other bit by bit.
    """

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor] = _only
    split: Callable[[Tensor], Sequence[Tensor]] = _alone
    transposes: bool = False
    """Whether theirs is a matrix kept as (in, out)."""


def transposed(ours: str, theirs: str) -> Rule:
    """A matrix that they keep as (in, out) and we as (out, in)."""
    return Rule(
        ours,
        (theirs,),
        lambda tensors: tensors[0].T.contiguous(),
        lambda tensor: [tensor.T.contiguous()],
        transposes=True,
    )


def stacked(ours: str, theirs: Sequence[str]) -> Rule:
    """Matrices of theirs one below the other in ours, of equal heights: the halves of a gated MLP."""
    count = len(theirs)
    return Rule(
        ours,
        tuple(theirs),
        lambda tensors: torch.cat(list(tensors)),
        lambda tensor: [part.contiguous() for part in tensor.chunk(count)],
    )


def query_key_value(ours: str, theirs: Sequence[str], model: ModelConfig) -> Rule:
    """Three projections (weights or biases) in Megatron's order: of each query group its queries, its key, its value."""
    groups, per_group = model.query_groups, model.num_attention_heads // model.query_groups
    rows = [per_group * model.head_dim, model.head_dim, model.head_dim]

    def join(tensors: Sequence[Tensor]) -> Tensor:
        parts = [part.reshape(groups, -1, *part.shape[1:]) for part in tensors]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def split(tensor: Tensor) -> list[Tensor]:
        parts = tensor.reshape(groups, sum(rows), *tensor.shape[1:]).split(rows, dim=1)
        return [part.flatten(0, 1) for part in parts]

    return Rule(ours, tuple(theirs), join, split)


def fused_query_key_value(ours: str, theirs: str, model: ModelConfig, transpose: bool) -> Rule:
    """The same where they keep one tensor of all queries, all keys, all values; (in, out) with `transpose`."""
    parts = query_key_value(ours, ("", "", ""), model)
    heads = (model.num_attention_heads, model.query_groups, model.query_groups)
    rows = [count * model.head_dim for count in heads]

    def join(tensors: Sequence[Tensor]) -> Tensor:
        whole = tensors[0].T if transpose else tensors[0]
        return parts.join(whole.split(rows))

    def split(tensor: Tensor) -> list[Tensor]:
        whole = torch.cat(list(parts.split(tensor)))
        return [whole.T.contiguous() if transpose else whole]

    return Rule(ours, (theirs,), join, split, transpose)


def with_bias(ours: str, theirs: str) -> list[Rule]:
    """The weight and the bias of a module that is the same there."""
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]
