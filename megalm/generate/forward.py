"""One pass over all stages of a model: hidden states from stage to stage, logits of the tokens that are asked for."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.mappings import gather_from_tensor_model_parallel_region
from torch import Tensor

from megalm.generate.cache import SlotCache
from megalm.generate.lean import Chunk, Pass
from megalm.model.gpt import GPT
from megalm.parallel.layout import Layout


class Network:
    """This rank's parts of a model; every rank of a copy of the model makes the same calls."""

    def __init__(self, chunks: Sequence[GPT], layout: Layout) -> None:
        self.layout = layout
        self.chunks = [Chunk(chunk, layout.device) for chunk in chunks]
        config = chunks[0].config
        self.hidden_size, self.dtype = config.hidden_size, config.params_dtype
        self.groups = max(config.num_query_groups // layout.tp_size, 1)
        self.width = config.kv_channels
        self.vocab_size = chunks[0].real_vocab_size

    @property
    def num_layers(self) -> int:
        """Of this rank."""
        return sum(len(chunk.layers) for chunk in self.chunks)

    @property
    def token_bytes(self) -> int:
        """Memory of a token's keys and values on this rank."""
        return 2 * self.num_layers * self.groups * self.width * self.dtype.itemsize

    def make_cache(self, tokens: int) -> SlotCache:
        """A cache for this rank's layers with room for so many tokens."""
        return SlotCache(self.num_layers, self.groups, self.width, tokens, self.dtype, self.layout.device)

    def run(self, pass_: Pass, cache: SlotCache, wanted: Tensor | None) -> Tensor | None:
        """Logits (len(wanted), V) of the tokens with these numbers, by default of all, over the real vocabulary.

        None but on the last stage.
        """
        layout, group, layers = self.layout, self.layout.groups.pp, iter(cache.layers)
        before, after = (
            dist.get_global_rank(group, (layout.pp_rank + way) % layout.pp_size) for way in (-1, 1)
        )
        for chunk in self.chunks:
            if chunk.first:
                x_TH = chunk.embed(pass_)
            else:
                x_TH = torch.empty(
                    len(pass_.tokens_T), self.hidden_size, dtype=self.dtype, device=layout.device
                )
                dist.recv(x_TH, before, group=group)
            for layer in chunk.layers:
                x_TH = layer(x_TH, pass_, next(layers))
            if chunk.last:
                logits = chunk.logits(x_TH if wanted is None else x_TH[wanted])
                if layout.tp_size > 1:
                    logits = gather_from_tensor_model_parallel_region(logits, group=layout.groups.tp)
                return logits[:, : self.vocab_size]
            dist.send(x_TH.contiguous(), after, group=group)
        return None
