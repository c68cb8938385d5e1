"""Activations follow their formulas, and their kernels and our MLP agree with them."""

import math

import pytest
import torch
from torch import Tensor

from megalm.config.model import ModelConfig
from megalm.kernels import cxx_compiler
from megalm.model.activation import ACTIVATION_KERNELS, ACTIVATIONS, FusedMLP
from tests.tiny import tiny_config, tiny_model
from tests.worlds import in_world

HERE = [name for name in ACTIVATION_KERNELS if name != "liger"]  # that one: tests/gpu
GATES = {"swiglu": "silu", "geglu": "gelu"}


def formula(name: str, x: Tensor) -> Tensor:
    """By the papers, in the input's format."""
    if name in GATES:
        gate, value = x.chunk(2, -1)
        return formula(GATES[name], gate) * value
    if name == "silu":
        return x / (1 + torch.exp(-x))
    if name == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    if name == "gelu_tanh":
        return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return x.clamp(min=0) ** (2 if name == "squared_relu" else 1)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kernel", HERE)
def test_kernel_equals_the_formula_forward_and_backward(
    kernel: str, activation: str, dtype: torch.dtype, bound: float
) -> None:
    """Deviation relative to the largest element, from the formula in float64."""
    if kernel == "compile" and not cxx_compiler().usable:
        pytest.skip("no C++ compiler")
    x = 3 * torch.randn(6, 5, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for function, wide in (
        (ACTIVATION_KERNELS[kernel](ModelConfig(activation=activation)), dtype),
        (lambda x: formula(activation, x), torch.float64),
    ):
        leaf = x.to(dtype).to(wide).requires_grad_()
        output = function(leaf)
        factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(wide)
        results.append((output, *torch.autograd.grad((output * factors).sum(), leaf)))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("activation", ["swiglu", "gelu_tanh"])
@in_world(2)
def test_our_mlp_equals_the_librarys_on_two_ranks(activation: str) -> None:
    config = tiny_config(
        "llama-tiny",
        f"model.activation={activation}",
        "model.add_bias_linear=true",
        "parallel.tensor_model_parallel_size=2",
    )
    mlp = tiny_model(config).decoder.layers[0].mlp
    assert type(mlp) is FusedMLP
    torch.manual_seed(0)
    torch.nn.init.normal_(mlp.linear_fc1.bias)
    x = torch.randn(5, 2, 64, dtype=torch.float64, requires_grad=True)
    results = []
    for forward in (mlp.forward, lambda x: super(FusedMLP, mlp).forward(x)):
        output, bias = forward(x)
        results.append(
            (output, bias, *torch.autograd.grad(output.square().sum(), [x, mlp.linear_fc1.weight]))
        )
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
