"""What a checkpoint of ours holds, whichever way: whole weights, or adapters on those of another checkpoint."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megalm.checkpoint.directory import TENSORS, find_base, read_config, verify
from megalm.checkpoint.metadata import read_tensors
from megalm.config import Config
from megalm.config.lora import LoraConfig
from megalm.convert.stored import StoredTensors
from megalm.errors import UserError
from megalm.model.lora import is_adapter
from megalm.model.quantized import (
    WeightForm,
    dequantize,
    form_of_base,
    form_of_checkpoint,
    is_linear_weight,
    part_name,
    round_trip,
)


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
        form = form_of_base(self.lora)
        if form is not None and is_linear_weight(name):
            wide = round_trip(weight, form).to(wide.dtype)
        a, b = (f"{name.removesuffix('.weight')}.lora.{factor}" for factor in "ab")
        if name.endswith(".weight") and self.adapters.has(a):
            narrow_a, narrow_b = (self.adapters.read(factor).to(wide.dtype) for factor in (a, b))
            wide = wide.addmm(narrow_b, narrow_a, alpha=self.lora.scale)
        return wide.to(weight.dtype)


class Apart:
    """Adapters, and the weights that they adapt, each by its own name."""

    def __init__(self, base: Source, adapters: Source) -> None:
        self.base, self.adapters = base, adapters

    def outline(self, name: str) -> Tensor:
        """See Source."""
        return (self.adapters if is_adapter(name) else self.base).outline(name)

    def read(self, name: str) -> Tensor:
        """See Source."""
        return (self.adapters if is_adapter(name) else self.base).read(name)


class InFormat:
    """Those of another source, in one number format."""

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source, self.dtype = source, dtype

    def outline(self, name: str) -> Tensor:
        """See Source."""
        return self.source.outline(name).to(self.dtype)

    def read(self, name: str) -> Tensor:
        """See Source."""
        return self.source.read(name).to(self.dtype)


class Dequantized:
    """The weights that the codes of a checkpoint stand for, in fp32; all other parameters as they are stored."""

    def __init__(self, stored: StoredTensors, form: WeightForm) -> None:
        self.stored, self.form = stored, form

    def outline(self, name: str) -> Tensor:
        """See Source."""
        if not is_linear_weight(name):
            return self.stored.outline(name)
        codes = self.stored.outline(part_name(name, "codes"))
        outputs, inputs = codes.shape
        return torch.empty(outputs, inputs * (2 if self.form.name == "int4" else 1), device="meta")

    def read(self, name: str) -> Tensor:
        """See Source."""
        if not is_linear_weight(name):
            return self.stored.read(name)
        codes, scale = (self.stored.read(part_name(name, part)) for part in ("codes", "scale"))
        points = self.stored.read(part_name(name, "points")) if self.form.name == "int4" else None
        return dequantize(codes, scale, points, self.form.name)


def open_source(checkpoint: Path, config: Config | None = None) -> Source:
    """The parameters of a checkpoint: adapters added to what they adapt, codes as the weights that they stand for.

    UserError where files are damaged or missing.
    """
    if wrong := verify(checkpoint):
        raise UserError(f"{wrong}; use another checkpoint")
    config = config or read_config(checkpoint)
    stored = StoredTensors(checkpoint / TENSORS, read_tensors(checkpoint), config.model)
    form = form_of_checkpoint(config.quantization)
    if form is not None:
        return Dequantized(stored, form)
    if not config.lora.rank:
        return stored
    return Merged(open_source(find_base(checkpoint, config)), stored, config.lora)
