"""Initial weights that depend on (seed, parameter name) alone, never on the layout.

Each tensor is drawn in blocks of whole rows, each block from its own generator, so that a rank draws only the
rows that its slice touches.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megalm.config.schema import Config
from megalm.model.lora import initial_std
from megalm.parallel.layout import Layout

ROWS_PER_BLOCK = 64
_RESIDUAL_OUTPUTS = ("linear_proj.weight", "linear_fc2.weight")
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def draw_rows(seed: int, name: str, first: int, count: int, width: int) -> Tensor:
    """Rows first ... first + count - 1 of the standard normal matrix `name` of that width, float32 on the CPU."""
    start, stop = first // ROWS_PER_BLOCK, -(-(first + count) // ROWS_PER_BLOCK)
    blocks = [_block(seed, name, number, width) for number in range(start, stop)]
    offset = first - start * ROWS_PER_BLOCK
    return torch.cat(blocks)[offset : offset + count]


def _block(seed: int, name: str, number: int, width: int) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/{name}/{number}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(ROWS_PER_BLOCK, width, generator=generator)


def sharded_parameters(model: MegatronModule, layout: Layout) -> Iterator[ShardedTensor]:
    """Every shard that this process holds, gated matrices split into their halves."""
    yield from shards_in(model.sharded_state_dict(metadata={"dp_cp_group": layout.groups.dp_cp}))


def shards_in(state: Mapping[str, Any]) -> Iterator[ShardedTensor]:
    """Every shard in a nested sharded state, gated matrices split into their halves."""
    for value in nested_values(state):
        parts = nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]
        yield from (part for part in parts if isinstance(part, ShardedTensor))


def canonical_name(shard: ShardedTensor) -> str:
    """Our own name of the full tensor: the library's key with the layer's and the expert's number in it.

    The library counts them by leading axes, except the layers where dense ones and ones with experts take turns.
    """
    numbers = [str(i) for i in shard.global_offset[: shard.prepend_axis_num]]
    key = shard.key
    if numbers and not re.search(r"\.layers\.\d+\.", key):
        key = key.replace(".layers.", f".layers.{numbers.pop(0)}.")
    return key.replace(".experts.", f".experts.{numbers.pop()}.") if numbers else key


@torch.no_grad()
def initialize(model: MegatronModule, config: Config, layout: Layout) -> None:
    """Fill the weights: matrices normal(0, std), output projections std / sqrt(2 layers), norms one, biases zero."""
    if layout.without_memory:
        return
    tables = set() if config.model.position_embedding != "sinusoidal" else _frozen_tables(model)
    for shard in sharded_parameters(model, layout):
        if shard.data.is_meta or shard.data.data_ptr() in tables:
            continue  # quantised weights come from the checkpoint that is adapted
        name = canonical_name(shard)
        if ".quantized." in name:
            continue
        lead = shard.prepend_axis_num
        shape, offset = shard.global_shape[lead:], shard.global_offset[lead:]
        local = shard.data.view(shard.data.shape[-len(shape) :])
        if len(shape) == 1:
            local.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        rows = shape[0]
        if name in _VOCABULARY:
            assert config.model.vocab_size is not None
            rows = config.model.vocab_size
        std = initial_std(name, shape[1])
        if std is None:
            std = config.model.init_method_std
        if name.endswith(_RESIDUAL_OUTPUTS):
            std /= math.sqrt(2 * config.model.num_layers)
        _fill(local, config.run.seed, name, rows, shape[1], offset, std)


def _frozen_tables(model: MegatronModule) -> set[int]:
    """Addresses of what was computed, not drawn: sinusoidal positions."""
    return {
        parameter.data_ptr() for name, parameter in model.named_parameters() if "position_embeddings" in name
    }


def _fill(
    local: Tensor, seed: int, name: str, rows: int, width: int, offset: tuple[int, ...], std: float
) -> None:
    """Copy this shard's slice of the full matrix in pieces; rows from `rows` on are padding and become zero."""
    local.zero_()
    columns = slice(offset[1], offset[1] + local.shape[1])
    real = max(0, min(local.shape[0], rows - offset[0]))
    for start in range(0, real, 16 * ROWS_PER_BLOCK):
        count = min(16 * ROWS_PER_BLOCK, real - start)
        piece = draw_rows(seed, name, offset[0] + start, count, width)[:, columns]
        local[start : start + count] = (piece * std).to(local)
