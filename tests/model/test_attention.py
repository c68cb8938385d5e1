"""Attention kernels agree with the formula, and masks and biases do what they say."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from megalm.model.attention_kernels import ATTENTIONS
from megalm.model.attention_packages import Documents
from megalm.model.kernel_choice import NEEDS
from megalm.model.positions import alibi_bias, alibi_slopes
from megalm.model.state import ForwardState

ROWS, HEADS, TOKENS, WIDTH = 2, 4, 24, 8
HERE = [name for name in ATTENTIONS if ("model.attention", name) not in NEEDS]  # the others: tests/gpu
KERNELS = sorted(set(HERE) - {"plain"})


def random_qkv(groups: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, heads, TOKENS, WIDTH) for heads in (HEADS, groups, groups)]
    query, key, value = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes
    )
    return query, key, value


def random_segments() -> Tensor:
    return (torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.2).cumsum(1)


def mask_of(kind: str) -> Tensor | None:
    """No mask (causal), documents, or ALiBi's bias with the causal mask."""
    if kind == "causal":
        return None
    if kind == "documents":
        return ForwardState(segments_BS=random_segments()).mask(TOKENS, TOKENS, torch.device("cpu"))
    bias = alibi_bias(alibi_slopes(HEADS), TOKENS, TOKENS)
    return bias.masked_fill(torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), -math.inf)


def output_and_gradients(
    kernel: str, kind: str, groups: int, dtype: torch.dtype, wide: torch.dtype
) -> tuple[Tensor, ...]:
    """Of inputs that `dtype` can hold, computed in `wide`."""
    inputs = [x.detach().to(wide).requires_grad_() for x in random_qkv(groups, dtype)]
    mask = mask_of(kind)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(wide)
    output = ATTENTIONS[kernel](*inputs, mask, 0.0)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(wide)
    return output, *torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["causal", "documents", "alibi"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_equals_the_formula_forward_and_backward(
    kernel: str, kind: str, groups: int, dtype: torch.dtype, bound: float
) -> None:
    """Deviation relative to the largest element, from the formula in float64."""
    found = output_and_gradients(kernel, kind, groups, dtype, dtype)
    expected = output_and_gradients("plain", kind, groups, dtype, torch.float64)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == dtype
        assert (left - right).abs().max() <= bound * right.abs().max()


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("queries", [1, 7, TOKENS])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", [*KERNELS, "plain"])
def test_fewer_queries_than_keys_are_the_last_tokens(
    kernel: str, groups: int, queries: int, dtype: torch.dtype, bound: float
) -> None:
    inputs = random_qkv(groups, dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    expected = ATTENTIONS["plain"](*wide, None, 0.0)[:, :, -queries:]
    found = ATTENTIONS[kernel](inputs[0][:, :, -queries:], *inputs[1:], None, 0.0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    right = (expected, *torch.autograd.grad((expected * weights).sum(), wide))
    left = (found, *torch.autograd.grad((found * weights.to(dtype)).sum(), inputs))
    for one, other in zip(left, right, strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= bound * other.abs().max()


@pytest.mark.parametrize("kernel", HERE)
def test_kernel_equals_attention_written_out_token_by_token(kernel: str) -> None:
    query, key, value = random_qkv(groups=2)
    output = ATTENTIONS[kernel](query, key, value, None, 0.0)
    for row, head, token in ((0, 0, 0), (0, 1, 5), (1, 2, 11), (1, 3, TOKENS - 1)):
        keys, values = key[row, head // 2, : token + 1], value[row, head // 2, : token + 1]
        scores = torch.stack([query[row, head, token] @ k for k in keys]) / math.sqrt(WIDTH)
        shares = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(output[row, head, token], shares @ values)


@pytest.mark.parametrize("kernel", HERE)
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
    mask = ForwardState(segments_BS=segments).mask(TOKENS, TOKENS, torch.device("cpu"))
    assert mask is not None
    for row in range(ROWS):
        for query in range(TOKENS):
            for key in range(TOKENS):
                allowed = key <= query and bool(segments[row, query] == segments[row, key])
                assert mask[row, 0, query, key] == allowed


def test_attention_document_by_document_is_attention_under_the_documents_mask() -> None:
    query, key, value = random_qkv(groups=2)
    documents = Documents.of(random_segments())
    assert documents.offsets.dtype == torch.int32 and documents.longest == TOKENS
    assert documents.offsets[0] == 0 and documents.offsets[-1] == ROWS * TOKENS
    expected = ATTENTIONS["plain"](query, key, value, mask_of("documents"), 0.0).transpose(1, 2).flatten(0, 1)
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    offsets = documents.offsets.tolist()
    assert len(offsets) > ROWS + 2
    for start, stop in itertools.pairwise(offsets):
        parts = (x[start:stop].transpose(0, 1)[None] for x in flat)
        found = ATTENTIONS["plain"](*parts, None, 0.0)[0].transpose(0, 1)
        torch.testing.assert_close(found, expected[start:stop])
