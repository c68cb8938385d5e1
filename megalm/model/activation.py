"""Activations of the MLP, and the kernels that compute them, each under the name that the configuration knows it by."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP
from torch import Tensor, nn

from megalm.config.model import ModelConfig

Activation: TypeAlias = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's approximation (arXiv:1606.08415): x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    # 1 + tanh(u) = 2 sigmoid(2 u), and compilers have a faster exponential than hyperbolic tangent
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x))


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (arXiv:2109.08668)."""
    return F.relu(x).square()


# of a gated activation: what the gate goes through
ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "relu": F.relu,
    "squared_relu": squared_relu,
}


def plain_activation(model: ModelConfig) -> Activation:
    """The activation by torch's functions one after another; gated ones halve the last axis (arXiv:2002.05202)."""
    function = ACTIVATIONS[model.activation]
    if not model.gated:
        return function

    def gated(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return function(gate) * value

    return gated


def compiled_activation(model: ModelConfig) -> Activation:
    """The same as one kernel made by torch.compile: a C++ compiler on a CPU, Triton on CUDA."""
    return _compiled(model.activation)


@functools.cache
def _compiled(activation: str) -> Activation:
    """One function for all layers, so that it is compiled once."""
    return torch.compile(plain_activation(ModelConfig(activation=activation)))


def liger_activation(model: ModelConfig) -> Activation:
    """SwiGLU through Liger's Triton kernel on CUDA, which keeps only its input for the backward pass."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def swiglu(x: Tensor) -> Tensor:
        return LigerSiLUMulFunction.apply(*x.chunk(2, -1))

    assert model.activation == "swiglu"
    return swiglu


ACTIVATION_KERNELS: dict[str, Callable[[ModelConfig], Activation]] = {
    "auto": plain_activation,
    "plain": plain_activation,
    "compile": compiled_activation,
    "liger": liger_activation,
}


class FusedMLP(MLP):
    """Megatron-Core's MLP with the activation, gate included, in one function of ours."""

    activate: Activation

    def forward(self, hidden_states: Tensor, per_token_scale: Any = None, **_unused: Any) -> Any:
        """Return (output, bias still to be added or None)."""
        assert per_token_scale is None  # experts stay with the library's MLP
        inner, bias = self.linear_fc1(hidden_states)
        return self.linear_fc2(self.activate(inner if bias is None else inner + bias))


def use_activation_kernel(module: nn.Module, model: ModelConfig) -> None:
    """Give every dense MLP in `module` the kernel that `model.activation_kernel` names.

    The class is changed afterwards because the library's layer gives its process group to an MLP of its own class alone.
    """
    activate = ACTIVATION_KERNELS[model.activation_kernel](model)
    for part in module.modules():
        if type(part) is MLP and not getattr(part.linear_fc1, "is_expert", False):
            part.__class__ = FusedMLP
            part.activate = activate  # type: ignore[assignment]
