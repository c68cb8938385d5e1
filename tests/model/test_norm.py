"""Norm kernels agree with the formulas."""

import pytest
import torch
from torch import Tensor

from megalm.model.kernel_choice import NEEDS
from megalm.model.norm import NORMS, plain_norm

HERE = [name for name in NORMS if ("model.norm", name) not in NEEDS]  # the others: tests/gpu
KERNELS = sorted(set(HERE) - {"plain"})


def values(dtype: torch.dtype, with_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 3, 16), (16,), (16,))
    )
    x, weight, bias = ((3 * t + 1).to(dtype).requires_grad_() for t in (x, weight, bias))
    return x, weight, bias if with_bias else None


@pytest.mark.parametrize("with_bias", [True, False], ids=["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)], ids=str
)
def test_kernel_equals_the_formula_forward_and_backward(
    kernel: str, with_bias: bool, dtype: torch.dtype, bound: float
) -> None:
    results = []
    for function in (NORMS[kernel], plain_norm):
        x, weight, bias = values(dtype, with_bias)
        inputs = [t for t in (x, weight, bias) if t is not None]
        output = function(x, weight, bias, 1e-3)
        factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results.append((output, *torch.autograd.grad((output * factors).sum(), inputs)))
    for found, expected in zip(*results, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, expected, rtol=bound, atol=bound * float(expected.detach().abs().max())
        )


@pytest.mark.parametrize("kernel", HERE)
def test_layer_norm_has_the_stated_mean_and_variance(kernel: str) -> None:
    x, _, _ = values(torch.float64, True)
    output = NORMS[kernel](
        x, torch.full((16,), 2.0, dtype=torch.float64), torch.full((16,), 3.0, dtype=torch.float64), 0.0
    )
    torch.testing.assert_close(output.mean(-1), torch.full((5, 3), 3.0, dtype=torch.float64))
    torch.testing.assert_close(output.var(-1, correction=0), torch.full((5, 3), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("kernel", HERE)
def test_rms_norm_divides_by_the_root_of_the_mean_square_and_epsilon(kernel: str) -> None:
    x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 10.0], dtype=torch.float64)
    found = NORMS[kernel](x, weight, None, 3.5)
    torch.testing.assert_close(
        found, torch.tensor([[3.0, 40.0]], dtype=torch.float64) / 4
    )  # sqrt(25 / 2 + 3.5) = 4
