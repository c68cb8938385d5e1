"""Products with matrices of codes that need no whole weight: whole rows share a scale, activations are quantised as they come."""

import functools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megalm.errors import UserError

FP8 = torch.float8_e4m3fn
FP8_CAPABILITY = (9, 0)
FEW_TOKENS = 16
"""As many rows at most are read faster from int8 than from a weight that was made whole (bf16, measured on a CPU)."""
_SMALLEST = 1e-12
_ROWS_OF_CUDA, _MULTIPLE_OF_CUDA = 32, 8
_PACKED_GROUPS, _PACKED_OUTPUTS = (32, 64, 128, 256), 16


def from_rows(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x (..., inputs) times the matrix codes x scale, int8 (outputs, inputs) and fp32 (outputs, 1); in the format of x."""
    tokens = x.numel() // max(x.shape[-1], 1)
    if x.is_cpu and x.dtype == torch.bfloat16 and 0 < tokens <= FEW_TOKENS:
        flat = x.reshape(-1, x.shape[-1])
        return torch._weight_int8pack_mm(flat, codes, scale[:, 0].to(x.dtype)).view(*x.shape[:-1], len(codes))
    return F.linear(x, codes.to(x.dtype)) * scale[:, 0].to(x.dtype)


def packs_int4(x: Tensor, outputs: int, group_size: int | None) -> bool:
    """Whether torch has a kernel for x times such a matrix in int4: in bf16 on a CPU, some group sizes."""
    on_cpu = x.is_cpu and x.dtype == torch.bfloat16 and x.numel() > 0
    return on_cpu and group_size in _PACKED_GROUPS and outputs % _PACKED_OUTPUTS == 0


def pack_int4(codes: Tensor, scale: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel's order of codes (outputs, inputs) of 0 ... 15, and its scales and zeros (groups, outputs, 2) in bf16."""
    zeros = -points.float() * scale
    both = torch.stack([scale, zeros], dim=-1).transpose(0, 1).contiguous()
    return torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1), both.bfloat16()


def from_packed_int4(x: Tensor, packed: Tensor, scales_and_zeros: Tensor, group_size: int) -> Tensor:
    """x (..., inputs) times a matrix that `pack_int4` packed."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    product = torch._weight_int4pack_mm_for_cpu(flat, packed, group_size, scales_and_zeros)
    return product.view(*x.shape[:-1], len(packed))


def dynamic_int8(x: Tensor, codes: Tensor, scale: Tensor, sharers: dist.ProcessGroup | None) -> Tensor:
    """The same with each token's x in int8, too: symmetric, its largest absolute value becomes 127.

    sharers: the ranks that hold the other inputs of the same tokens, so that all quantise as one process would.
    """
    # to 127.5, as weights, the largest would lie between two codes, and a last bit of x would choose
    scale_x = _token_scale(x, 127, sharers)
    codes_x = (x * (1 / scale_x)).round().clamp(-127, 127).to(torch.int8)
    sums = _integer_product(codes_x.reshape(-1, x.shape[-1]), codes).view(*x.shape[:-1], len(codes))
    precise = scale_x.dtype
    return (sums.to(precise) * scale_x * scale[:, 0].to(precise)).to(x.dtype)


def dynamic_fp8(x: Tensor, codes: Tensor, scale: Tensor, sharers: dist.ProcessGroup | None) -> Tensor:
    """The same in fp8 (e4m3) on a device that multiplies it; codes are its bytes."""
    scale_x = _token_scale(x, torch.finfo(FP8).max, sharers).float()
    flat = (x / scale_x).to(FP8).reshape(-1, x.shape[-1])
    if not len(flat):  # an expert without tokens
        return x.new_zeros(*x.shape[:-1], len(codes))
    product = torch._scaled_mm(
        flat, codes.view(FP8).T, scale_x.reshape(-1, 1), scale.T, out_dtype=torch.bfloat16
    )
    return product.view(*x.shape[:-1], len(codes)).to(x.dtype)


def check_fp8(device: torch.device) -> None:
    """Raise UserError where `device` does not multiply in fp8 with a scale for each row."""
    if device.type != "cuda":
        raise UserError(f"fp8 needs a GPU of compute capability 9.0 (H100) or more, this is a {device.type}")
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise UserError(f"fp8 needs a GPU of compute capability 9.0 (H100) or more, this one has {found}")


def _token_scale(x: Tensor, largest: float, sharers: dist.ProcessGroup | None) -> Tensor:
    """What each token's codes are multiplied by, (..., 1); fp32, of fp64 in fp64."""
    most = x.abs().amax(-1, keepdim=True)
    most = most if most.dtype == torch.float64 else most.float()
    if sharers is not None and sharers.size() > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX, group=sharers)
    return most.clamp(min=_SMALLEST) / largest


def _integer_product(left: Tensor, right: Tensor) -> Tensor:
    """left right' of int8 matrices: (rows, inputs) and (outputs, inputs) to (rows, outputs)."""
    rows = len(left)
    if left.is_cuda and not any(size % _MULTIPLE_OF_CUDA for size in right.shape):
        filling = max(_ROWS_OF_CUDA - rows, -rows % _MULTIPLE_OF_CUDA)
        return torch._int_mm(F.pad(left, (0, 0, 0, filling)), right.T)[:rows]
    if left.is_cpu and rows and _cpu_adds_in_32_bits():
        return torch._int_mm(left, right.T)
    return F.linear(left.float(), right.float())


@functools.cache
def _cpu_adds_in_32_bits() -> bool:
    """Whether torch's product of integers is right: without VNNI it adds pairs in 16 bits, which the largest ones overflow."""
    ones = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(ones, ones.T) == 127 * 127 * 64).all())
