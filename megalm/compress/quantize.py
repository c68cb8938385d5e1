"""Writes a checkpoint with the weights of its linear layers in few bits, or with all weights in bf16."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalm.compress.source import Whole, open_whole
from megalm.config.checks import check
from megalm.config.quantization import QuantizationConfig
from megalm.config.suggest import nearest
from megalm.convert.checkpoint import entry
from megalm.convert.derived import changed, plain_config, write_derived
from megalm.convert.source import Source
from megalm.convert.stored import Entry
from megalm.errors import UserError
from megalm.model.quantized import (
    PARTS,
    WeightForm,
    form_of_checkpoint,
    is_linear_weight,
    part_name,
    quantize,
)
from megalm.model.quantized_products import check_fp8

QUANTIZATIONS = ("bf16", "int8", "int8_dynamic", "int4", "fp8")
_WITH_GROUPS, _WITH_ACTIVATIONS = ("int8", "int4"), ("int8_dynamic", "fp8")
INT4_GROUP = 32
"""Weights that share a scale and a zero point where nothing else is asked for: 5.25 bits a weight."""


def quantize_checkpoint(
    source: str | Path,
    target: str | Path,
    method: str,
    group_size: int | None = None,
    step: int | str | None = None,
) -> dict[str, Any]:
    """Write the model at `source` at `target` with its weights in the form `method`; a tensor at a time is in memory.

    bf16: all weights. int8, int4: those of linear layers, `group_size` of them in a row share a scale (int8: by default a whole
    row, int4: 32). int8_dynamic and fp8: activations as well, as they come. Codes and scales are torchao's. Returns what was
    made. Raises UserError for what cannot be; then nothing is left at `target`.
    """
    check_quantization_method(method, group_size)
    whole = open_whole(source, step)
    made = plain_config(whole.config)
    if method == "bf16":
        made.precision.dtype = "bf16"
        entries = [changed(whole.weights, name, Tensor.bfloat16, torch.bfloat16) for name in whole.names]
    else:
        if method == "int4" and group_size is None:
            group_size = INT4_GROUP
        made.quantization = QuantizationConfig(
            method=method.removesuffix("_dynamic"),  # type: ignore[arg-type]  # checked above
            group_size=group_size,
            activations=method in _WITH_ACTIVATIONS,
        )
        check(made)
        form = form_of_checkpoint(made.quantization)
        assert form is not None
        entries = list(_entries(whole, form))
    how = f"quantized, {method}" + (f" in groups of {group_size}" if group_size else "")
    write_derived(target, whole.folder, whole.config, made, entries, how)
    return {"source": str(whole.folder), "method": method, "group_size": group_size}


def check_quantization_method(method: str, group_size: int | None) -> None:
    """Raise UserError for a method that there is not, or not here, and for groups where it has none."""
    if method not in QUANTIZATIONS:
        known = ", ".join(QUANTIZATIONS)
        raise UserError(f"method {method!r} is unknown{nearest(method, QUANTIZATIONS)} (known: {known})")
    if group_size is not None and method not in _WITH_GROUPS:
        raise UserError(
            f"group size {group_size} with {method}: groups are for {' and '.join(_WITH_GROUPS)}; leave it out"
        )
    if group_size is not None and (group_size < 2 or group_size % 2):
        raise UserError(f"group size {group_size}: it must be an even number from 2 on, e.g. 32")
    if method == "fp8":
        check_fp8(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _entries(whole: Whole, form: WeightForm) -> Iterator[Entry]:
    for name in whole.names:
        if not is_linear_weight(name):
            yield entry(whole.weights, name)
            continue
        parts = _Parts(whole.weights, name, form)
        outputs, inputs = whole.weights.outline(name).shape
        for part, row in zip(PARTS, quantize(torch.zeros(1, inputs), form), strict=True):
            if row is not None:
                yield Entry(part_name(name, part), (outputs, row.shape[1]), row.dtype, parts.maker(part))


class _Parts:
    """The tensors of one quantised weight: made together when the first is asked for, and let go with the last."""

    def __init__(self, source: Source, name: str, form: WeightForm) -> None:
        self.source, self.name, self.form = source, name, form
        self.waiting: dict[str, Tensor] = {}

    def maker(self, part: str) -> Callable[[], Tensor]:
        """What hands out one of them."""
        return lambda: self._take(part)

    def _take(self, part: str) -> Tensor:
        if not self.waiting:
            made = quantize(self.source.read(self.name).float(), self.form)
            self.waiting = {
                key: tensor for key, tensor in zip(PARTS, made, strict=True) if tensor is not None
            }
        return self.waiting.pop(part)
