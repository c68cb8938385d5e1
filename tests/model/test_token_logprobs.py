"""Log-probabilities and entropies of the head equal torch's on whole logits, in value and gradient, whole and split."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megalm.model.cross_entropy import local_columns
from megalm.model.state import ForwardState
from megalm.model.token_logprobs import LogprobHead, linear_logprobs
from tests.tiny import VOCABULARY, random_tokens, tiny_config, tiny_model
from tests.worlds import in_world

TOKENS, HIDDEN, TEMPERATURE = 23, 12, 0.7
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"


def problem(vocabulary: int, tokens: int = TOKENS) -> tuple[Tensor, ...]:
    """(hidden, output matrix, labels, gradients of log-probabilities and of entropies)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels_T = torch.randint(vocabulary, (tokens,), generator=generator)
    labels_T[:2] = torch.tensor([0, vocabulary - 1])
    return normal(tokens, HIDDEN), normal(vocabulary, HIDDEN), labels_T, normal(tokens), normal(tokens)


def plain(logits_TV: Tensor, labels_T: Tensor) -> tuple[Tensor, Tensor]:
    log_TV = logits_TV.log_softmax(-1)
    return log_TV.gather(-1, labels_T[..., None]).squeeze(-1), -(log_TV.exp() * log_TV).sum(-1)


def check(vocabulary: int, padded: int, chunk: int = 7, tokens: int = TOKENS) -> slice:
    group = dist.group.WORLD
    hidden_TH, weight_VH, labels_T, *gradients = problem(vocabulary, tokens)
    hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    wanted = plain(hidden_TH @ weight_VH.T / TEMPERATURE, labels_T)
    wanted_hidden, wanted_weight = torch.autograd.grad(wanted, (hidden_TH, weight_VH), gradients)
    first, count = local_columns(padded, vocabulary, group)
    rows = slice(first, first + count)
    local_VH = weight_VH[rows].detach().clone().requires_grad_()
    found = linear_logprobs(hidden_TH, local_VH, labels_T, first, group, TEMPERATURE, chunk)
    found_hidden, found_weight = torch.autograd.grad(found, (hidden_TH, local_VH), gradients)
    dist.all_reduce(found_hidden, group=group)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    torch.testing.assert_close(found_hidden, wanted_hidden, **CLOSE)
    torch.testing.assert_close(found_weight, wanted_weight[rows], **CLOSE)
    return rows


@pytest.mark.parametrize("chunk", [1, 7, TOKENS, 1000])
@in_world(1)
def test_equals_torch_on_one_process(chunk: int) -> None:
    check(31, 31, chunk)


@in_world(1)
def test_blocks_of_a_cpu_cache_add_up() -> None:
    check(31, 31, chunk=100, tokens=230)


@in_world(2)
def test_split_vocabulary_with_a_padded_column_equals_torch() -> None:
    rows = check(31, 32)
    assert rows.stop - rows.start == (16, 15)[dist.get_rank()]


@in_world(2)
def test_a_rank_of_padding_alone_changes_nothing() -> None:
    rows = check(5, 16)
    assert rows.stop - rows.start == (5, 0)[dist.get_rank()]


@in_world(1)
def test_one_result_may_go_without_gradient() -> None:
    hidden_TH, weight_VH, labels_T, gradient_T, _ = problem(31)
    hidden_TH.requires_grad_()
    for number in (0, 1):
        mine = linear_logprobs(hidden_TH, weight_VH, labels_T, 0, dist.group.WORLD)[number]
        theirs = plain(hidden_TH @ weight_VH.T, labels_T)[number]
        found, wanted = (torch.autograd.grad(x, hidden_TH, gradient_T)[0] for x in (mine, theirs))
        torch.testing.assert_close(found, wanted, **CLOSE)


@in_world(1)
def test_no_tokens_have_no_gradient() -> None:
    hidden_TH, weight_VH, labels_T, *_ = problem(31)
    hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    logprob_T, entropy_T = linear_logprobs(hidden_TH[:0], weight_VH, labels_T[:0], 0, dist.group.WORLD)
    (logprob_T.sum() + entropy_T.sum()).backward()
    assert logprob_T.shape == entropy_T.shape == (0,)
    assert not hidden_TH.grad.any() and not weight_VH.grad.any()


@in_world(1)
def test_bfloat16_logits_meet_a_softmax_in_fp32() -> None:
    hidden_TH, weight_VH, labels_T, *_ = problem(31)
    hidden_TH, weight_VH = hidden_TH.bfloat16(), weight_VH.bfloat16()
    found = linear_logprobs(hidden_TH, weight_VH, labels_T, 0, dist.group.WORLD)
    for mine, theirs in zip(found, plain((hidden_TH @ weight_VH.T).double(), labels_T), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


@in_world(2)
def test_logits_of_any_size_neither_overflow_nor_vanish() -> None:
    rank, labels_T = dist.get_rank(), torch.tensor([3, 0])
    whole_V1 = torch.tensor([[-2000.0], [0.0], [1000.0], [3000.0]])
    logprob_T, entropy_T = linear_logprobs(
        torch.ones(2, 1), whole_V1[2 * rank : 2 * rank + 2], labels_T, 2 * rank, dist.group.WORLD
    )
    assert logprob_T.tolist() == [0.0, -5000.0] and entropy_T.tolist() == [0.0, 0.0]


def head_results(*overrides: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Results of the head, and gradients of a loss of them: of its own matrix and of the first and last parameters before it."""
    model = tiny_model(tiny_config("llama-tiny", *overrides))
    tokens_BS, labels_BS, mask_BS = inputs()
    results_2BS = model(tokens_BS, ForwardState(head=LogprobHead(labels_BS, mask_BS, TEMPERATURE)))
    weights_2BS = torch.randn(results_2BS.shape, generator=torch.Generator().manual_seed(3)).double()
    (results_2BS * weights_2BS).sum().backward()
    norm_H = model.decoder.final_layernorm.weight.grad
    if model.config.sequence_parallel:  # each rank has the gradient of its own tokens
        dist.all_reduce(norm_H)
    columns = slice(model.first_column, model.first_column + model.columns)
    whole = {"norm": norm_H}
    for name, parameter in (
        ("embedding", model.embedding.word_embeddings.weight),
        ("output", model.output_weight()),
    ):
        whole[name] = torch.zeros(VOCABULARY, *parameter.shape[1:], dtype=torch.float64)
        whole[name][columns] = parameter.grad[: model.columns]
        if model.columns < VOCABULARY:
            dist.all_reduce(whole[name])
    return results_2BS.detach(), whole


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, labels, mask): a third of the tokens and all of a row do not count."""
    mask_BS = (random_tokens(3, seed=2) % 3 > 0).float()
    mask_BS[1] = 0
    return random_tokens(3), random_tokens(3, seed=1), mask_BS


@pytest.mark.parametrize("chunk", [7, 1024])
@in_world(1)
def test_head_of_a_model_equals_its_logits(chunk: int) -> None:
    found_2BS, found = head_results(f"model.cross_entropy_chunk_tokens={chunk}")
    model = tiny_model(tiny_config("llama-tiny"))
    tokens_BS, labels_BS, mask_BS = inputs()
    wanted_2BS = torch.stack(plain(model(tokens_BS) / TEMPERATURE, labels_BS)) * mask_BS
    weights_2BS = torch.randn(wanted_2BS.shape, generator=torch.Generator().manual_seed(3)).double()
    (wanted_2BS * weights_2BS).sum().backward()
    torch.testing.assert_close(found_2BS, wanted_2BS.detach(), **CLOSE)
    torch.testing.assert_close(found["norm"], model.decoder.final_layernorm.weight.grad, **CLOSE)
    torch.testing.assert_close(
        found["embedding"], model.embedding.word_embeddings.weight.grad[:VOCABULARY], **CLOSE
    )


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("overrides", [(TP2,), (TP2, SP)], ids=["TP2", "TP2+SP"])
@in_world(2)
def test_head_under_tensor_parallelism_equals_one_process(overrides: tuple[str, ...], tied: str) -> None:
    tie = f"model.tie_embeddings={tied}"
    wanted_2BS, wanted = head_results(tie)  # two copies, each the model of one process
    found_2BS, found = head_results(tie, *overrides)
    torch.testing.assert_close(found_2BS, wanted_2BS, **CLOSE)
    torch.testing.assert_close(found, wanted, **CLOSE)
