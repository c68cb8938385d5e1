"""Weights in 8 or 4 bits: a frozen base made whole for each use (QLoRA, arXiv:2305.14314), or what a checkpoint holds.

A weight is cut into groups of neighbours along its inputs, each with a scale of its own. No group reaches beyond a rank's
part (`config.quantization_checks` sees to it), so that ranks quantise their parts as one process would quantise the whole.
Where a group is a whole row, its scale comes from the checkpoint.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from megalm.config.lora import ALL_TARGETS, LoraConfig
from megalm.config.quantization import QuantizationConfig
from megalm.errors import UserError
from megalm.model.quantized_products import (
    FP8,
    check_fp8,
    dynamic_fp8,
    dynamic_int8,
    from_packed_int4,
    from_rows,
    pack_int4,
    packs_int4,
)
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
_PACKED = ("int4", "nf4")
PARTS = ("codes", "scale", "points")
"""Tensors that make up a quantised weight; only int4 has `points` of its own, a zero point for each group."""
_INTEGERS = {"int8": (-128, 127), "int4": (-8, 7)}


@dataclass(frozen=True)
class WeightForm:
    """What the weights of linear layers lie in.

    name: `int8`, `int4`, `nf4` or `fp8`. group_size: weights that share a scale, None: a whole row. dynamic: activations are
    quantised, too. stored: the codes come from a checkpoint that holds them.
    """

    name: str
    group_size: int | None
    dynamic: bool = False
    stored: bool = False


def form_of_base(lora: LoraConfig) -> WeightForm | None:
    """The form of the model that is adapted; None where it is whole."""
    if not lora.rank or lora.quantize_base == "none":
        return None
    return WeightForm(lora.quantize_base, lora.quantize_group_size)


def form_of_checkpoint(quantization: QuantizationConfig) -> WeightForm | None:
    """The form in which a checkpoint holds its linear layers; None where they are whole."""
    if quantization.method == "none":
        return None
    return WeightForm(quantization.method, quantization.group_size, quantization.activations, stored=True)


def is_linear_weight(name: str) -> bool:
    """Whether the parameter of that name is quantised where any are: the weights of linear layers, experts' too."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and module.rpartition(".")[2] in ALL_TARGETS


def part_name(weight: str, part: str) -> str:
    """Name of a tensor (`PARTS`) that stands in a checkpoint for the weight of that name."""
    return f"{weight.removesuffix('weight')}quantized.{part}"


class QuantizedWeight(nn.Module):
    """A matrix (outputs, inputs) in a form of few bits; zero until numbers are copied in, or codes are read.

    inputs_shared_by: the ranks among which the inputs of the whole layer are cut. int8: symmetric, absmax; int4: asymmetric, with a zero point; both in torchao's arithmetic. nf4: the nearest of the
    sixteen values of NormalFloat times the group's largest; fp8: e4m3, its bytes. Scales are fp32. There is no second quantisation of the scales,
    as in the paper: it takes their mean over the whole matrix, which the ranks do not have.
    """

    codes: Tensor
    scale: Tensor
    scales_and_zeros: Tensor | None
    points: Tensor | None
    """int4: the zero point of each group; nf4: the sixteen values."""

    def __init__(
        self,
        outputs: int,
        inputs: int,
        form: WeightForm,
        device: torch.device,
        inputs_shared_by: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.form, self.inputs_shared_by = form, inputs_shared_by
        if not form.stored:
            _load_primitives(form.name)
        if form.name == "fp8" and form.dynamic:
            check_fp8(device)
        packed = 2 if form.name in _PACKED else 1
        codes = torch.int8 if form.name == "int8" else torch.uint8
        groups = (outputs, inputs // (form.group_size or inputs))
        self._hold("codes", torch.zeros(outputs, inputs // packed, dtype=codes, device=device))
        self._hold("scale", torch.zeros(groups, device=device))
        points = None
        if form.name == "int4":
            points = torch.zeros(groups, dtype=torch.int8, device=device)
        elif form.name == "nf4":
            points = torch.tensor(NORMAL_FLOAT, device=device)
        self._hold("points", points)
        self.register_buffer("scales_and_zeros", None, persistent=False)

    def _hold(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=self.form.stored)

    @torch.no_grad()
    def copy_(self, whole: Tensor) -> None:
        """Take over a matrix (outputs, inputs) in any floating-point format; it is quantised from fp32."""
        parts = quantize(whole.to(self.scale.device, torch.float32), self.form)
        for name, part in zip(PARTS, parts, strict=True):
            if part is not None:
                getattr(self, name).copy_(part)

    def dequantize(self) -> Tensor:
        """The matrix that is computed with, fp32; not after its codes were brought into a kernel's order."""
        assert self.scales_and_zeros is None
        return dequantize(self.codes, self.scale, self.points, self.form.name)

    def forward(self, x: Tensor) -> Tensor:
        """x W', of (..., inputs) to (..., outputs), in the format of x; the whole matrix is there while it runs only."""
        if self.form.dynamic:
            multiply = dynamic_fp8 if self.form.name == "fp8" else dynamic_int8
            return multiply(x, self.codes, self.scale, self.inputs_shared_by)
        if self.form.name == "int8" and self.form.group_size is None and not torch.is_grad_enabled():
            return from_rows(x, self.codes, self.scale)
        if self._is_packed_for(x):
            assert self.form.group_size is not None and self.scales_and_zeros is not None
            return from_packed_int4(x, self.codes, self.scales_and_zeros, self.form.group_size)
        result: Tensor = _Linear.apply(x, self.codes, self.scale, self.points, self.form.name)
        return result

    def _is_packed_for(self, x: Tensor) -> bool:
        """Whether the codes lie in the order of a kernel for x; those of a checkpoint are brought into it at first use."""
        if self.scales_and_zeros is None:
            wanted = self.form.name == "int4" and self.form.stored and not torch.is_grad_enabled()
            if not (wanted and packs_int4(x, len(self.codes), self.form.group_size)):
                return False
            assert self.points is not None
            self.codes, self.scales_and_zeros = pack_int4(_unpack(self.codes), self.scale, self.points)
        return True


class _Linear(torch.autograd.Function):
    """Keeps the quantised matrix for the way back, where plain autograd would keep the whole one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, points: Tensor | None, form: str
    ) -> Tensor:
        ctx.save_for_backward(codes, scale, points)
        ctx.form = form
        return F.linear(x, dequantize(codes, scale, points, form, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        codes, scale, points = ctx.saved_tensors
        weight = dequantize(codes, scale, points, ctx.form, grad.dtype)
        return grad @ weight, None, None, None, None


def round_trip(weight: Tensor, form: WeightForm) -> Tensor:
    """What is computed with in the place of `weight` (outputs, inputs) where it is quantised; fp32."""
    return dequantize(*quantize(weight.float(), form), form.name)


def quantize(weight: Tensor, form: WeightForm) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes of an fp32 matrix, scales, and the points: zero points of int4, the sixteen values of nf4."""
    _load_primitives(form.name)
    group_size = form.group_size or weight.shape[1]
    if form.name == "nf4":
        return _to_normal_float(weight, group_size)
    if form.name == "fp8":
        return _to_fp8(weight)
    from torchao.quantization import MappingType
    from torchao.quantization.quant_primitives import choose_qparams_affine, quantize_affine

    block, (low, high) = (1, group_size), _INTEGERS[form.name]
    scale, zero = choose_qparams_affine(
        weight,
        MappingType.SYMMETRIC if form.name == "int8" else MappingType.ASYMMETRIC,
        block,
        torch.int8,
        low,
        high,
        zero_point_dtype=torch.int8,
        keepdim=True,
    )
    codes = quantize_affine(weight, block, scale, zero, torch.int8, low, high)
    return (codes, scale, None) if form.name == "int8" else (_pack(codes - low), scale, zero)


def dequantize(
    codes: Tensor, scale: Tensor, points: Tensor | None, form: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The matrix in the format `dtype`, computed in fp32, some rows at a time: the steps in between are several times as large."""
    inputs = codes.shape[1] * (2 if form in _PACKED else 1)
    whole = torch.empty(len(codes), inputs, dtype=dtype, device=codes.device)
    step = max(1, WEIGHTS_AT_A_TIME // inputs)
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        own = points[rows] if points is not None and form == "int4" else points
        whole[rows] = _dequantize_rows(codes[rows], scale[rows], own, form)
    return whole


def _dequantize_rows(codes: Tensor, scale: Tensor, points: Tensor | None, form: str) -> Tensor:
    """fp32; of integers bit by bit what torchao makes of them, which takes more steps."""
    if form == "fp8":
        return codes.view(FP8).float() * scale
    if form == "int8":
        groups = codes.float().view(*scale.shape, -1)
    else:
        assert points is not None
        unpacked = _unpack(codes)
        if form == "nf4":
            groups = points[unpacked.int()].view(*scale.shape, -1)
        else:
            low, _ = _INTEGERS[form]
            groups = unpacked.float().view(*scale.shape, -1).sub_((points.float() - low)[..., None])
    return groups.mul_(scale[..., None]).flatten(1)


def _to_normal_float(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    groups = weight.unflatten(1, (-1, group_size))
    scale = groups.abs().amax(-1)
    values = torch.tensor(NORMAL_FLOAT, device=weight.device)
    between = (values[1:] + values[:-1]) / 2
    shares = groups / torch.where(scale > 0, scale, 1.0)[..., None]
    return _pack(torch.bucketize(shares, between).flatten(1)), scale, values


def _to_fp8(weight: Tensor) -> tuple[Tensor, Tensor, None]:
    scale = (
        weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(FP8).max
    )
    return (weight / scale).to(FP8).view(torch.uint8), scale, None


def _pack(codes: Tensor) -> Tensor:
    """Two codes of 0 ... 15 a byte, the first in the upper half."""
    codes = codes.to(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2]


def _unpack(packed: Tensor) -> Tensor:
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1)


@functools.cache
def _load_primitives(form: str) -> None:
    """Import torchao where the form is one of its own; UserError where it is missing."""
    if form not in _INTEGERS:
        return
    try:
        with quiet_output():  # it tells of kernels that were built for other machines
            import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"weights in {form} need the package torchao ({error}): pip install 'megalm[quantize]', adapters do with nf4, too"
        ) from None
