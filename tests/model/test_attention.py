"""Attention kernels agree with the formula, and masks and biases do what they say."""

import math

import pytest
import torch
from torch import Tensor

from megalm.model.attention_kernels import ATTENTIONS, plain_attention
from megalm.model.positions import alibi_bias, alibi_slopes
from megalm.model.state import ForwardState

ROWS, HEADS, TOKENS, WIDTH = 2, 4, 24, 8
KERNELS = sorted(set(ATTENTIONS) - {"plain"})


def random_qkv(groups: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, heads, TOKENS, WIDTH) for heads in (HEADS, groups, groups)]
    query, key, value = (
        torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes
    )
    return query, key, value


def random_segments() -> Tensor:
    return (torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.2).cumsum(1)


def mask_of(kind: str) -> Tensor | None:
    """No mask (causal), documents, or ALiBi's bias with the causal mask."""
    if kind == "causal":
        return None
    if kind == "documents":
        return ForwardState(segments_BS=random_segments()).mask(TOKENS, torch.device("cpu"))
    bias = alibi_bias(alibi_slopes(HEADS), ForwardState(), TOKENS, TOKENS)
    return bias.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -math.inf)


def gradients(function, mask: Tensor | None, groups: int) -> tuple[Tensor, ...]:
    inputs = random_qkv(groups)
    output = function(*inputs, mask, 0.0)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return output, *torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["causal", "documents", "alibi"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_equals_the_formula_forward_and_backward(kernel: str, kind: str, groups: int) -> None:
    mask = mask_of(kind)
    found, expected = (gradients(f, mask, groups) for f in (ATTENTIONS[kernel], plain_attention))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", ATTENTIONS)
def test_kernel_equals_attention_written_out_token_by_token(kernel: str) -> None:
    query, key, value = random_qkv(groups=2)
    output = ATTENTIONS[kernel](query, key, value, None, 0.0)
    for row, head, token in ((0, 0, 0), (0, 1, 5), (1, 2, 11), (1, 3, TOKENS - 1)):
        keys, values = key[row, head // 2, : token + 1], value[row, head // 2, : token + 1]
        scores = torch.stack([query[row, head, token] @ k for k in keys]) / math.sqrt(WIDTH)
        shares = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(output[row, head, token], shares @ values)


@pytest.mark.parametrize("kernel", ATTENTIONS)
def test_dropout_keeps_the_mean_and_drops_the_stated_share(kernel: str) -> None:
    torch.manual_seed(0)
    query, key = torch.zeros(1, 64, 64, 4), torch.zeros(1, 64, 64, 4)
    everything = torch.ones(1, 1, 64, 64, dtype=torch.bool)
    value = torch.ones(1, 64, 64, 4)
    output = ATTENTIONS[kernel](query, key, value, everything, 0.25)
    # a mean of 64 Bernoulli draws of 3/4, scaled by 4/3: variance 1/64 x 1/3
    assert output.mean() == pytest.approx(1.0, abs=0.01)
    assert output.var() == pytest.approx(1 / 192, rel=0.1)


def test_documents_mask_is_causal_inside_each_document_and_closed_between_them() -> None:
    segments = random_segments()
    mask = ForwardState(segments_BS=segments).mask(TOKENS, torch.device("cpu"))
    assert mask is not None
    for row in range(ROWS):
        for query in range(TOKENS):
            for key in range(TOKENS):
                allowed = key <= query and bool(segments[row, query] == segments[row, key])
                assert mask[row, 0, query, key] == allowed
