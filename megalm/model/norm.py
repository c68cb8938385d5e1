"""LayerNorm and RMSNorm that work with sequence parallelism."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Norm over the last axis by the papers' formulas: LayerNorm with a bias, RMSNorm (arXiv:1910.07467) without."""
    wide = x if x.dtype == torch.float64 else x.float()
    if bias is not None:
        wide = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    scaled = (wide * scale).to(x.dtype) * weight
    return scaled if bias is None else scaled + bias


def torch_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The same through torch's fused kernels."""
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def liger_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The same through Liger's Triton kernels on CUDA."""
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    if bias is not None:
        return LigerLayerNormFunction.apply(x, weight, bias, eps)
    # no offset on the weight; statistics in fp32; the incoming gradient is the residual's too, so it is not overwritten
    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def apex_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The same through NVIDIA apex's kernels on CUDA."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine, fused_rms_norm_affine

    if bias is not None:
        return fused_layer_norm_affine(x, weight, bias, weight.shape, eps)
    return fused_rms_norm_affine(x, weight, weight.shape, eps)


NORMS = {
    "auto": torch_norm,
    "torch": torch_norm,
    "plain": plain_norm,
    "liger": liger_norm,
    "apex": apex_norm,
    "te": torch_norm,  # in layers transformer_engine.py puts Transformer Engine's module in place of `Norm`
}


class Norm(nn.Module):
    """A norm with a weight (and a bias for LayerNorm) of shape (hidden,); built by Megatron-Core from our spec.

    Under sequence parallelism each rank sees a slice of the sequence: the attribute `sequence_parallel` of the
    parameters asks Megatron-Core to sum their gradients over the tensor-parallel ranks.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_unused: Any) -> None:
        super().__init__()
        self.eps = eps
        self.function = NORMS[config.model.norm]
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if config.normalization == "LayerNorm" else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis; same shape and dtype."""
        return self.function(x, self.weight, self.bias, self.eps)


class HeadNorm(Norm):
    """A norm over the width of each head, weight of shape (head width,) the same for all heads.

    A rank sees its own heads alone, so that gradients are summed over the tensor-parallel ranks whether or not the
    sequence is split: Megatron-Core knows these norms by their names, the mark is for DeepSpeed.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_unused: Any) -> None:
        super().__init__(config, hidden_size, eps)
        for parameter in self.parameters():
            parameter.sequence_parallel = True  # type: ignore[attr-defined]
