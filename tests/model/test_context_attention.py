"""A context-parallel rank's attention: the numbers of the whole sequence, half the work of each rank, keys kept in shares."""

import weakref
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megalm.model import context_attention
from megalm.model.attention_kernels import ATTENTIONS, plain_attention
from megalm.model.context_attention import attend_over_context
from megalm.model.kernel_choice import NEEDS
from megalm.parallel.context import ContextShare
from tests.worlds import in_world

ROWS, HEADS, TOKENS, WIDTH = 2, 4, 24, 8


def whole_qkv(groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same on every rank: (S, B, heads, D)."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, ROWS, heads, WIDTH) for heads in (HEADS, groups, groups)]
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return query, key, value


def local_qkv(context: ContextShare, groups: int) -> list[Tensor]:
    order = context.order(torch.device("cpu"))
    return [x[order].requires_grad_() for x in whole_qkv(groups)]


@in_world(2)
def test_ranks_hold_each_token_once_and_as_many_pairs_to_attend_to() -> None:
    context = ContextShare(dist.group.WORLD, TOKENS)
    orders = [torch.empty(TOKENS // 2, dtype=torch.int64) for _ in range(2)]
    dist.all_gather(orders, context.order(torch.device("cpu")))
    assert torch.cat(orders).sort().values.tolist() == list(range(TOKENS))
    assert orders[0].sum() == orders[1].sum(), "a token at place p attends to p + 1 tokens"


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [name for name in ATTENTIONS if ("model.attention", name) not in NEEDS])
@in_world(2)
def test_output_and_gradients_equal_attention_over_the_whole_sequence(kernel: str, groups: int) -> None:
    context = ContextShare(dist.group.WORLD, TOKENS)
    order = context.order(torch.device("cpu"))
    whole = [x.requires_grad_() for x in whole_qkv(groups)]
    expected = plain_attention(*(x.permute(1, 2, 0, 3) for x in whole), None, 0.0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((expected * weights).sum(), whole)

    local = local_qkv(context, groups)
    found = attend_over_context(lambda q, k, v: ATTENTIONS[kernel](q, k, v, None, 0.0), *local, context)
    found_gradients = torch.autograd.grad((found * weights[:, :, order]).sum(), local)
    torch.testing.assert_close(found, expected[:, :, order], rtol=0, atol=1e-13)
    for left, right in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(left, right[order], rtol=0, atol=1e-13)


@in_world(2)
def test_no_rank_computes_what_causality_rules_out() -> None:
    """Besides the chunk itself only what lies before it is given to the kernel: the same number of pairs on every rank."""
    context = ContextShare(dist.group.WORLD, TOKENS)
    chunk, pairs = TOKENS // 4, []

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pairs.append(query.shape[2] * (key.shape[2] - chunk))
        return plain_attention(query, key, value, None, 0.0)

    attend_over_context(attend, *local_qkv(context, HEADS), context)
    assert sum(pairs) == 3 * chunk**2, "chunks 0 and 3, or 1 and 2, have 3 chunks before them in all"


@in_world(2)
def test_keys_of_the_whole_sequence_are_freed_after_each_pass_and_gathered_once_in_each() -> None:
    context, held = ContextShare(dist.group.WORLD, TOKENS), []
    gather = context_attention.gather

    def watched(*arguments: object) -> Tensor:
        whole = gather(*arguments)
        held.append(weakref.ref(whole.untyped_storage()))
        return whole

    with mock.patch.object(context_attention, "gather", watched):
        local = local_qkv(context, groups=2)
        output = attend_over_context(lambda q, k, v: ATTENTIONS["torch"](q, k, v, None, 0.0), *local, context)
        assert [reference() for reference in held] == [None]
        output.sum().backward()
        assert [reference() for reference in held] == [None, None]
