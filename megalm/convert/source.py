"""What a checkpoint of ours holds, whichever way: whole weights, or adapters on those of another checkpoint."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from megalm.checkpoint.directory import TENSORS, find_base, read_config, verify
from megalm.checkpoint.metadata import read_tensors
from megalm.config import Config
from megalm.config.lora import LoraConfig
from megalm.convert.stored import StoredTensors
from megalm.errors import UserError
from megalm.model.quantized import is_quantized, round_trip


class Source(Protocol):
    """Parameters by our names."""

    def outline(self, name: str) -> Tensor:
        """One without numbers, on torch's meta device."""

    def read(self, name: str) -> Tensor:
        """One without padded rows of the vocabulary."""


class Merged:
    """Adapters added to the weights that they adapt: W + scale B A, summed in fp32 at least.

    Where the run had quantised its base, W is what the codes stand for: the merged model computes what the run did, and
    keeps the error of the quantisation.
    """

    def __init__(self, base: Source, adapters: StoredTensors, lora: LoraConfig) -> None:
        self.base, self.adapters, self.lora = base, adapters, lora

    def outline(self, name: str) -> Tensor:
        """See Source."""
        return self.base.outline(name)

    def read(self, name: str) -> Tensor:
        """See Source."""
        weight = self.base.read(name)
        wide = weight if weight.itemsize > 4 else weight.float()
        if is_quantized(name, self.lora):
            wide = round_trip(weight, self.lora).to(wide.dtype)
        a, b = (f"{name.removesuffix('.weight')}.lora.{factor}" for factor in "ab")
        if name.endswith(".weight") and self.adapters.has(a):
            narrow_a, narrow_b = (self.adapters.read(factor).to(wide.dtype) for factor in (a, b))
            wide = wide.addmm(narrow_b, narrow_a, alpha=self.lora.scale)
        return wide.to(weight.dtype)


def open_source(checkpoint: Path, config: Config | None = None) -> Source:
    """The parameters of a checkpoint, adapters added to what they adapt. UserError where files are damaged or missing."""
    if wrong := verify(checkpoint):
        raise UserError(f"{wrong}; use another checkpoint")
    config = config or read_config(checkpoint)
    stored = StoredTensors(checkpoint / TENSORS, read_tensors(checkpoint), config.model)
    if not config.lora.rank:
        return stored
    return Merged(open_source(find_base(checkpoint, config)), stored, config.lora)
