"""Both cross entropies equal torch's, in value and gradient, whole and split over ranks."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megalm.model.cross_entropy import linear_cross_entropy, local_columns, vocab_parallel_cross_entropy
from tests.worlds import in_world

TOKENS, HIDDEN = 23, 12
WEIGHTINGS = ("ones", "zeros and ones", "fractions", "all zero")


def problem(vocabulary: int, weighting: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, output matrix, labels, weights of the tokens)."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    weight_VH = torch.randn(vocabulary, HIDDEN, generator=generator, dtype=torch.float64)
    labels_T = torch.randint(vocabulary, (TOKENS,), generator=generator)
    labels_T[:2] = torch.tensor([0, vocabulary - 1])
    mask_T = {
        "ones": torch.ones(TOKENS),
        "zeros and ones": torch.randint(2, (TOKENS,), generator=generator).float(),
        "fractions": torch.rand(TOKENS, generator=generator),
        "all zero": torch.zeros(TOKENS),
    }[weighting]
    return hidden_TH, weight_VH, labels_T, mask_T


def expected_loss_and_gradients(
    vocabulary: int, weighting: str, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    hidden_TH, weight_VH, labels_T, mask_T = problem(vocabulary, weighting)
    hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    loss = (F.cross_entropy(hidden_TH @ weight_VH.T, labels_T, reduction="none") * mask_T).sum()
    return loss.detach(), *torch.autograd.grad(loss * scale, (hidden_TH, weight_VH))


def found_loss_and_gradients(
    kind: str, vocabulary: int, padded: int, weighting: str, scale: float, chunk: int
):
    """This rank's loss, the hidden gradient summed over ranks, its rows of the weight gradient, and where they lie."""
    group = dist.group.WORLD
    hidden_TH, weight_VH, labels_T, mask_T = problem(vocabulary, weighting)
    first, count = local_columns(padded, vocabulary, group)
    local_VH = weight_VH[first : first + count].clone().requires_grad_()
    hidden_TH.requires_grad_()
    if kind == "fused":
        loss = linear_cross_entropy(hidden_TH, local_VH, labels_T, mask_T, first, group, chunk)
    else:
        loss = (vocab_parallel_cross_entropy(hidden_TH @ local_VH.T, labels_T, first, group) * mask_T).sum()
    hidden_gradient, weight_gradient = torch.autograd.grad(loss * scale, (hidden_TH, local_VH))
    dist.all_reduce(hidden_gradient, group=group)
    return loss, hidden_gradient, weight_gradient, slice(first, first + count)


def check(kind: str, vocabulary: int, padded: int, weighting: str = "fractions", chunk: int = 7) -> slice:
    scale = 0.37
    loss, hidden_gradient, weight_gradient, rows = found_loss_and_gradients(
        kind, vocabulary, padded, weighting, scale, chunk
    )
    expected, expected_hidden, expected_weight = expected_loss_and_gradients(vocabulary, weighting, scale)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, expected, **close)
    torch.testing.assert_close(hidden_gradient, expected_hidden, **close)
    torch.testing.assert_close(weight_gradient, expected_weight[rows], **close)
    return rows


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", ["fused", "plain"])
@in_world(1)
def test_equals_torch_on_one_process(kind: str, weighting: str) -> None:
    check(kind, 31, 31, weighting)


@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
@in_world(1)
def test_chunks_that_do_not_divide_the_tokens_change_nothing(chunk: int) -> None:
    check("fused", 31, 31, chunk=chunk)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", ["fused", "plain"])
@in_world(2)
def test_split_vocabulary_with_a_padded_column_equals_torch(kind: str, weighting: str) -> None:
    rows = check(kind, 31, 32, weighting)
    assert rows.stop - rows.start == (16, 15)[dist.get_rank()]


@pytest.mark.parametrize("kind", ["fused", "plain"])
@in_world(2)
def test_a_rank_of_padding_alone_changes_nothing(kind: str) -> None:
    rows = check(kind, 5, 16)
    assert rows.stop - rows.start == (5, 0)[dist.get_rank()]


@pytest.mark.parametrize("kind", ["fused", "plain"])
@in_world(2)
def test_logits_of_any_size_neither_overflow_nor_vanish(kind: str) -> None:
    hidden_TH = torch.tensor([[1.0], [1.0]])
    whole_V1 = torch.tensor([[-2000.0], [0.0], [1000.0], [3000.0]])
    labels_T, rank = torch.tensor([3, 0]), dist.get_rank()
    local_V1, first = whole_V1[2 * rank : 2 * rank + 2], 2 * rank
    if kind == "fused":
        loss = linear_cross_entropy(hidden_TH, local_V1, labels_T, torch.ones(2), first, dist.group.WORLD)
    else:
        loss = vocab_parallel_cross_entropy(hidden_TH @ local_V1.T, labels_T, first, dist.group.WORLD).sum()
    assert float(loss) == 5000.0


@pytest.mark.parametrize("kind", ["fused", "plain"])
@in_world(1)
def test_bfloat16_gradients_are_scaled_without_bias(kind: str) -> None:
    """The mean loss divides by a count that bfloat16 cannot hold; gradients must not all be off by its rounding."""
    group = dist.group.WORLD
    hidden_TH, weight_VH, labels_T, mask_T = problem(31, "ones")
    hidden_TH, weight_VH = (t.bfloat16().requires_grad_() for t in (hidden_TH, weight_VH))
    gradients = []
    for scale in (1.0, 1 / 93.7):  # nearest in bfloat16: 0.25% off
        if kind == "fused":
            loss = linear_cross_entropy(hidden_TH, weight_VH, labels_T, mask_T, 0, group)
        else:
            loss = (vocab_parallel_cross_entropy(hidden_TH @ weight_VH.T, labels_T, 0, group) * mask_T).sum()
        assert loss.dtype == torch.float32
        gradients.append(torch.autograd.grad(loss * scale, (hidden_TH, weight_VH)))
    for whole, scaled in zip(*gradients, strict=True):
        ratio = (scaled.double() * whole.double()).sum() / whole.double().square().sum()
        assert float(ratio) == pytest.approx(1 / 93.7, rel=5e-4)
