"""Frozen weights in 8 or 4 bits that are made whole for each use (QLoRA, arXiv:2305.14314).

A weight is cut into groups of neighbours along its inputs, each with a scale of its own. No group reaches beyond a rank's
part (`config.lora_checks` sees to it), so that ranks quantise their parts as one process would quantise the whole.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megalm.config.lora import ALL_TARGETS, LoraConfig
from megalm.errors import UserError
from megalm.quiet import quiet_output

# Quantiles of the normal distribution between -1 and 1, with a zero among them (QLoRA, appendix E).
NORMAL_FLOAT = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
WEIGHTS_AT_A_TIME = 1 << 22
_INTEGERS = {"int8": (-128, 127), "int4": (-8, 7)}


def is_quantized(name: str, lora: LoraConfig) -> bool:
    """Whether the parameter of that name lies in the frozen model's quantised form: the weights of its linear layers."""
    module, _, kind = name.rpartition(".")
    return lora.quantize_base != "none" and kind == "weight" and module.rpartition(".")[2] in ALL_TARGETS


class QuantizedWeight(nn.Module):
    """A matrix (outputs, inputs) in the form that `lora.quantize_base` names; zero until numbers are copied in.

    int8: symmetric, absmax; int4: asymmetric, with a zero point; both in torchao's arithmetic. nf4: the nearest of the
    sixteen values of NormalFloat times the group's largest. Scales are fp32. There is no second quantisation of the scales,
    as in the paper: it takes their mean over the whole matrix, which the ranks do not have.
    """

    codes: Tensor
    scale: Tensor
    points: Tensor | None
    """int4: the zero point of each group; nf4: the sixteen values."""

    def __init__(self, outputs: int, inputs: int, lora: LoraConfig, device: torch.device) -> None:
        super().__init__()
        self.form, self.group_size = lora.quantize_base, lora.quantize_group_size
        _load_primitives(self.form)
        packed = 1 if self.form == "int8" else 2
        codes = torch.int8 if self.form == "int8" else torch.uint8
        groups = (outputs, inputs // self.group_size)
        self._hold("codes", torch.zeros(outputs, inputs // packed, dtype=codes, device=device))
        self._hold("scale", torch.zeros(groups, device=device))
        points = None
        if self.form == "int4":
            points = torch.zeros(groups, dtype=torch.int8, device=device)
        elif self.form == "nf4":
            points = torch.tensor(NORMAL_FLOAT, device=device)
        self._hold("points", points)

    def _hold(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def copy_(self, whole: Tensor) -> None:
        """Take over a matrix (outputs, inputs) in any floating-point format; it is quantised from fp32."""
        parts = _quantize(whole.to(self.scale.device, torch.float32), self.form, self.group_size)
        for name, part in zip(("codes", "scale", "points"), parts, strict=True):
            if part is not None:
                getattr(self, name).copy_(part)

    def dequantize(self) -> Tensor:
        """The matrix that is computed with, fp32."""
        return _dequantize(self.codes, self.scale, self.points, self.form)

    def forward(self, x: Tensor) -> Tensor:
        """x W', of (..., inputs) to (..., outputs), in the format of x; the whole matrix is there while it runs only."""
        result: Tensor = _Linear.apply(x, self.codes, self.scale, self.points, self.form)
        return result


class _Linear(torch.autograd.Function):
    """Keeps the quantised matrix for the way back, where plain autograd would keep the whole one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, points: Tensor | None, form: str
    ) -> Tensor:
        ctx.save_for_backward(codes, scale, points)
        ctx.form = form
        return F.linear(x, _dequantize(codes, scale, points, form, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        codes, scale, points = ctx.saved_tensors
        weight = _dequantize(codes, scale, points, ctx.form, grad.dtype)
        return grad @ weight, None, None, None, None


def round_trip(weight: Tensor, lora: LoraConfig) -> Tensor:
    """What a run that quantises its base computes with in the place of `weight` (outputs, inputs); fp32."""
    _load_primitives(lora.quantize_base)
    parts = _quantize(weight.float(), lora.quantize_base, lora.quantize_group_size)
    return _dequantize(*parts, lora.quantize_base)


def _quantize(weight: Tensor, form: str, group_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes of an fp32 matrix, scales, and the points: zero points of int4, the sixteen values of nf4."""
    if form == "nf4":
        return _to_normal_float(weight, group_size)
    from torchao.quantization import MappingType
    from torchao.quantization.quant_primitives import choose_qparams_affine, quantize_affine

    block, (low, high) = (1, group_size), _INTEGERS[form]
    scale, zero = choose_qparams_affine(
        weight,
        MappingType.SYMMETRIC if form == "int8" else MappingType.ASYMMETRIC,
        block,
        torch.int8,
        low,
        high,
        zero_point_dtype=torch.int8,
        keepdim=True,
    )
    codes = quantize_affine(weight, block, scale, zero, torch.int8, low, high)
    return (codes, scale, None) if form == "int8" else (_pack(codes - low), scale, zero)


def _dequantize(
    codes: Tensor, scale: Tensor, points: Tensor | None, form: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The matrix in the format `dtype`, computed in fp32, some rows at a time: the steps in between are several times as large."""
    inputs = codes.shape[1] * (1 if form == "int8" else 2)
    whole = torch.empty(len(codes), inputs, dtype=dtype, device=codes.device)
    step = max(1, WEIGHTS_AT_A_TIME // inputs)
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        own = points[rows] if points is not None and form == "int4" else points
        whole[rows] = _dequantize_rows(codes[rows], scale[rows], own, form)
    return whole


def _dequantize_rows(codes: Tensor, scale: Tensor, points: Tensor | None, form: str) -> Tensor:
    if form == "nf4":
        assert points is not None
        return (points[_unpack(codes).int()].view(*scale.shape, -1) * scale[..., None]).flatten(1)
    from torchao.quantization.quant_primitives import dequantize_affine

    low, high = _INTEGERS[form]
    if form == "int4":
        codes = _unpack(codes).to(torch.int8) + low
    block = (1, codes.shape[1] // scale.shape[1])
    return dequantize_affine(codes, block, scale, points, torch.int8, low, high)


def _to_normal_float(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    groups = weight.unflatten(1, (-1, group_size))
    scale = groups.abs().amax(-1)
    values = torch.tensor(NORMAL_FLOAT, device=weight.device)
    between = (values[1:] + values[:-1]) / 2
    shares = groups / torch.where(scale > 0, scale, 1.0)[..., None]
    return _pack(torch.bucketize(shares, between).flatten(1)), scale, values


def _pack(codes: Tensor) -> Tensor:
    """Two codes of 0 ... 15 a byte, the first in the upper half."""
    codes = codes.to(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2]


def _unpack(packed: Tensor) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1)


@functools.cache
def _load_primitives(form: str) -> None:
    """Import torchao where the form is one of its own; UserError where it is missing."""
    if form == "nf4":
        return
    try:
        with quiet_output():  # it tells of kernels that were built for other machines
            import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"lora.quantize_base {form} needs the package torchao ({error}): pip install torchao, or take nf4"
        ) from None
