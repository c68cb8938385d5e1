"""A head with some numbers for each sample: classes of a text, or a reward."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor, nn

from megalm.model.shared import SumOverRanks

OUTPUT = "sequence_head.output.weight"
_NAMES = (
    "sequence_head.",
    "pooler.",
)  # `pooler.dense` is the same in BERT's head for pairs, and is taken over from there


def is_head(name: str) -> bool:
    """Whether a parameter's name, or a stored tensor's, is that of a part of the sequence head."""
    return name.startswith(_NAMES)


class WideLinear(nn.Linear):
    """x W' + b in fp32 at least, whatever the format of the weights."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide))


class Pooler(nn.Module):
    """Dense layer and tanh on the pooled state (arXiv:1810.04805)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = WideLinear(width, width)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        return self.dense(pooled_BH).tanh()


class SequenceHead(nn.Module):
    """Dropout and the outputs, computed alike on all tensor-parallel ranks."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = WideLinear(width, outputs)

    def forward(self, pooled_BH: Tensor) -> Tensor:
        return self.output(self.dropout(pooled_BH))


def add_sequence_head(model: Any, core: Any) -> None:
    """Give the last part of a model its `sequence_head` and `pooler` (or None), as the section `model.sequence_head` says."""
    settings = core.model
    width = settings.hidden_size
    model.pooler = Pooler(width) if settings.pools_with_transform else None
    model.sequence_head = SequenceHead(width, settings.sequence_head.outputs, settings.hidden_dropout)


def sequence_outputs(model: Any, hidden_SBH: Tensor, weights_BS: Tensor) -> Tensor:
    """Outputs (B, outputs) of the mean of hidden states weighted by `weights_BS`: 1 for one token, or for all of the text.

    hidden_SBH: of the whole sequence, under context parallelism of this rank's part of it; every rank gets the whole's
    outputs, and the gradient of all ranks' losses counts.
    """
    wide = torch.promote_types(hidden_SBH.dtype, torch.float32)
    weights_SB1 = weights_BS.T[..., None].to(wide)
    sum_BH, weight_B1 = (weights_SB1 * hidden_SBH).sum(0), weights_SB1.sum(0)
    group = model.pg_collection.cp
    if group.size() > 1:
        sum_BH, weight_B1 = SumOverRanks.apply(sum_BH, group), SumOverRanks.apply(weight_B1, group)
    pooled_BH = sum_BH / weight_B1
    return model.sequence_head(pooled_BH if model.pooler is None else model.pooler(pooled_BH))


def token_outputs(model: Any, hidden_states: Tensor) -> Tensor:
    """Outputs at each token, (B, S, outputs), as a `ForwardState.head`; under context parallelism at this rank's tokens."""
    if model.config.sequence_parallel:
        hidden_states = gather_from_sequence_parallel_region(
            hidden_states, tensor_parallel_output_grad=False, group=model.pg_collection.tp
        )
    if model.pooler is not None:
        hidden_states = model.pooler(hidden_states)
    return model.sequence_head(hidden_states).transpose(0, 1)


def shards_without_output_layer(model: Any, prefix: str, offsets: Any, metadata: Any) -> dict[str, Any]:
    """A model's `sharded_state_dict` past the library's own method for language models, which counts on an output layer."""
    return super(LanguageModule, model).sharded_state_dict(prefix, offsets, metadata)
