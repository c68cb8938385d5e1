"""What a checkpoint of ours holds, whichever way: whole weights, or adapters on those of another checkpoint."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from megalm.checkpoint.directory import TENSORS, find_checkpoint, read_config, verify
from megalm.checkpoint.metadata import read_tensors
from megalm.checkpoint.read import refuse_adapters
from megalm.config import Config
from megalm.convert.stored import StoredTensors
from megalm.errors import UserError


class Source(Protocol):
    """Parameters by our names."""

    def outline(self, name: str) -> Tensor:
        """One without numbers, on torch's meta device."""

    def read(self, name: str) -> Tensor:
        """One without padded rows of the vocabulary."""


class Merged:
    """Adapters added to the weights that they adapt: W + alpha / rank B A, summed in fp32 at least."""

    def __init__(self, base: Source, adapters: StoredTensors, scale: float) -> None:
        self.base, self.adapters, self.scale = base, adapters, scale

    def outline(self, name: str) -> Tensor:
        """See Source."""
        return self.base.outline(name)

    def read(self, name: str) -> Tensor:
        """See Source."""
        weight = self.base.read(name)
        a, b = (f"{name.removesuffix('.weight')}.lora.{factor}" for factor in "ab")
        if not (name.endswith(".weight") and self.adapters.has(a)):
            return weight
        wide = weight if weight.itemsize > 4 else weight.float()
        narrow_a, narrow_b = (self.adapters.read(factor).to(wide.dtype) for factor in (a, b))
        return wide.addmm(narrow_b, narrow_a, alpha=self.scale).to(weight.dtype)


def open_source(checkpoint: Path, config: Config | None = None) -> Source:
    """The parameters of a checkpoint, adapters added to what they adapt. UserError where files are damaged or missing."""
    if wrong := verify(checkpoint):
        raise UserError(f"{wrong}; use another checkpoint")
    config = config or read_config(checkpoint)
    stored = StoredTensors(checkpoint / TENSORS, read_tensors(checkpoint), config.model)
    if not config.lora.rank:
        return stored
    assert config.run.load is not None
    try:
        base = find_checkpoint(config.run.load)
    except UserError as error:
        raise UserError(
            f"{checkpoint} holds adapters alone, of run.load {config.run.load}: {error}"
        ) from None
    refuse_adapters(base)
    return Merged(open_source(base), stored, config.lora.scale)
