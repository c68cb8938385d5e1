"""Tensors without memory that pass for tensors of another device, so that code takes the branches it would take there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

META = torch.device("meta")
_KINDS = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.uint8: "Byte",
    torch.bool: "Bool",
}


class PretendDevice(TorchFunctionMode):
    """While active, what asks for a device gets a meta tensor, and that tensor says it lives on `device`.

    Kernels that torch chooses by device are chosen as they would be there. to_numpy: the values to give where code asks.
    """

    def __init__(self, device: torch.device, to_numpy: Callable[[Tensor], NDArray[Any]]) -> None:
        super().__init__()
        self.device = device
        self.replaced: dict[Any, Callable[..., Any]] = {
            Tensor.device.__get__: lambda _: device,  # type: ignore[attr-defined]
            Tensor.is_cuda.__get__: lambda _: device.type == "cuda",  # type: ignore[attr-defined]
            Tensor.is_cpu.__get__: lambda _: device.type == "cpu",  # type: ignore[attr-defined]
            Tensor.is_meta.__get__: lambda _: False,  # type: ignore[attr-defined]
            Tensor.cpu: lambda tensor, *_, **__: tensor,
            Tensor.cuda: lambda tensor, *_, **__: tensor,
            Tensor.pin_memory: lambda tensor, *_, **__: tensor,
            Tensor.tolist: lambda tensor: to_numpy(tensor).tolist(),
            Tensor.numpy: lambda tensor, **_: to_numpy(tensor) if tensor.is_meta else tensor.numpy(),
            Tensor.backward: self._backward,
            torch._C._nn.scaled_dot_product_attention: self._attention,
        }
        if device.type == "cuda":
            # the outer one asks first, and what it calls is not asked again
            self.replaced |= {F.rms_norm: _cuda_rms_norm, torch.rms_norm: _cuda_rms_norm}

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in self.replaced:
            return self.replaced[function](*args, **kwargs)
        if str(kwargs.get("device")) == META.type:  # takes no memory on the planned device either
            with _disable_current_modes():
                return function(*args, **kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = META
        if function is Tensor.to:
            args = [META if isinstance(a, torch.device | str) else a for a in args]
        if function is Tensor.type and len(args) == 1 and not kwargs:
            # Megatron-Core sorts parameters by this name; where it was rewritten for the CPU, it looks for the CPU's
            prefix = "torch.cuda." if torch.cuda.is_available() else "torch."
            return f"{prefix}{_KINDS[args[0].dtype]}Tensor"
        return function(*args, **kwargs)

    def _backward(
        self,
        tensor: Tensor,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        """Recompute runs the forward pass within: there, too, this mode must be active."""
        with self:
            torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """The kernel behind scaled_dot_product_attention; what it leaves for the backward pass differs a lot."""
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        backend = self._attention_backend(query, key, value, attn_mask, dropout_p, is_causal, options)
        if backend == SDPBackend.MATH:
            return torch._C._nn.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, **options
            )
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        if self.device.type == "cpu":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )[0]
        if backend == SDPBackend.FLASH_ATTENTION:
            return torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, scale=scale
            )[0]
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
        )[0]

    def _attention_backend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        causal: bool,
        options: Mapping[str, Any],
    ) -> SDPBackend:
        if self.device.type == "cuda":
            if query.dtype == torch.float64:
                return SDPBackend.MATH
            half = query.dtype in (torch.bfloat16, torch.float16)
            if mask is None and half:
                return SDPBackend.FLASH_ATTENTION
            # the other fused kernel takes no grouped heads
            return SDPBackend.MATH if options["enable_gqa"] else SDPBackend.EFFICIENT_ATTENTION
        # torch's own choice, asked with tensors of the same shapes that share a few real numbers
        with _disable_current_modes():
            shown = [
                torch.empty(1, dtype=x.dtype).expand(x.shape[-1]).contiguous() for x in (query, key, value)
            ]
            shown = [real.expand(x.shape) for real, x in zip(shown, (query, key, value), strict=True)]
            shown_mask = None if mask is None else torch.empty(1, dtype=mask.dtype).expand(mask.shape)
            choose: Any = torch._fused_sdp_choice
            return SDPBackend(choose(*shown, shown_mask, dropout, causal, **options))


class _FusedRMSNorm(torch.autograd.Function):
    """What torch's kernel on CUDA makes and keeps; elsewhere torch composes the norm of a dozen operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=wide))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def _cuda_rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor, eps: float | None = None
) -> Tensor:
    return _FusedRMSNorm.apply(input, weight)
