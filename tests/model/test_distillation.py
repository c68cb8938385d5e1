"""The loss of distillation equals torch's plain computation on whole logits, in value and gradient, whole and split."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megalm.model.cross_entropy import linear_cross_entropy, local_columns
from megalm.model.distillation import HiddenTeacher, Objective, TopKTeacher, linear_distillation
from tests.worlds import in_world

TOKENS, HIDDEN, TEACHER_HIDDEN = 23, 12, 20
CLOSE = {"rtol": 1e-12, "atol": 1e-12}
OBJECTIVES = {
    "forward": Objective(0.3, 2.0),
    "teacher alone": Objective(1.0, 1.0),
    "labels alone": Objective(0.0, 3.0),
    "reverse": Objective(0.7, 1.5, "reverse_kl"),
    "jsd": Objective(0.6, 2.5, "jsd", 0.2),
}


def problem(vocabulary: int) -> tuple[Tensor, ...]:
    """(hidden, output matrix, teacher's hidden, teacher's output matrix, labels, weights of the tokens)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels_T = torch.randint(vocabulary, (TOKENS,), generator=generator)
    labels_T[:2] = torch.tensor([0, vocabulary - 1])
    mask_T = torch.rand(TOKENS, generator=generator) * torch.randint(2, (TOKENS,), generator=generator)
    hidden = normal(TOKENS, HIDDEN), normal(vocabulary, HIDDEN)
    return *hidden, normal(TOKENS, TEACHER_HIDDEN), normal(vocabulary, TEACHER_HIDDEN), labels_T, mask_T


def plain_divergence(student_TV: Tensor, teacher_TV: Tensor, objective: Objective) -> Tensor:
    """Per token, from log-probabilities, by torch's own kl_div, whose first argument is the one approximated with."""

    def kl(p_TV: Tensor, q_TV: Tensor) -> Tensor:
        return F.kl_div(q_TV, p_TV, reduction="none", log_target=True).sum(-1)

    if objective.divergence == "forward_kl":
        return kl(teacher_TV, student_TV)
    if objective.divergence == "reverse_kl":
        return kl(student_TV, teacher_TV)
    beta = objective.beta
    mixed_TV = (beta * teacher_TV.exp() + (1 - beta) * student_TV.exp()).log()
    return beta * kl(teacher_TV, mixed_TV) + (1 - beta) * kl(student_TV, mixed_TV)


def expected(vocabulary: int, objective: Objective, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    hidden_TH, weight_VH, teacher_TH, teacher_VH, labels_T, mask_T = problem(vocabulary)
    hidden_TH.requires_grad_(), weight_VH.requires_grad_()
    student_TV, teacher_TV = hidden_TH @ weight_VH.T, teacher_TH @ teacher_VH.T
    alpha, temperature = objective.alpha, objective.temperature
    soft = [(logits / temperature).log_softmax(-1) for logits in (student_TV, teacher_TV)]
    loss_T = (1 - alpha) * F.cross_entropy(student_TV, labels_T, reduction="none")
    loss_T = loss_T + alpha * temperature**2 * plain_divergence(*soft, objective)
    loss = (loss_T * mask_T).sum()
    return loss.detach(), *torch.autograd.grad(loss * scale, (hidden_TH, weight_VH))


def check(vocabulary: int, padded: int, objective: Objective, chunk: int = 7) -> slice:
    group, scale = dist.group.WORLD, 0.37
    hidden_TH, weight_VH, teacher_TH, teacher_VH, labels_T, mask_T = problem(vocabulary)
    first, count = local_columns(padded, vocabulary, group)
    rows = slice(first, first + count)
    local_VH = weight_VH[rows].clone().requires_grad_()
    hidden_TH.requires_grad_()
    teacher = HiddenTeacher(teacher_TH, teacher_VH[rows])
    loss, summands = linear_distillation(
        hidden_TH, local_VH, labels_T, mask_T, teacher, objective, first, group, chunk
    )
    hidden_gradient, weight_gradient = torch.autograd.grad(loss * scale, (hidden_TH, local_VH))
    dist.all_reduce(hidden_gradient, group=group)
    expected_loss, expected_hidden, expected_weight = expected(vocabulary, objective, scale)
    torch.testing.assert_close(loss, expected_loss, **CLOSE)
    torch.testing.assert_close(summands.sum(), expected_loss, **CLOSE)
    torch.testing.assert_close(hidden_gradient, expected_hidden, **CLOSE)
    torch.testing.assert_close(weight_gradient, expected_weight[rows], **CLOSE)
    return rows


@in_world(1)
def test_equals_torch_on_one_process() -> None:
    for objective in OBJECTIVES.values():
        for chunk in (1, 7, 1000):
            check(31, 31, objective, chunk)


@in_world(2)
def test_equals_torch_split_over_ranks() -> None:
    for objective in OBJECTIVES.values():
        check(31, 32, objective)


@in_world(4)
def test_equals_torch_where_a_rank_holds_padding_alone() -> None:
    last = [check(7, 12, objective) for objective in OBJECTIVES.values()][-1]
    assert (last.start < last.stop) == (dist.get_rank() < 3)


@in_world(1)
def test_blocks_of_a_cpu_cache_add_up() -> None:
    hidden_TH, weight_VH, teacher_TH, teacher_VH, labels_T, mask_T = (
        part if len(part) == 31 else part.repeat(5, *[1] * (part.ndim - 1)) for part in problem(31)
    )
    teacher = HiddenTeacher(teacher_TH, teacher_VH)
    assert len(hidden_TH) > 64
    group = dist.group.WORLD
    found, _ = linear_distillation(
        hidden_TH, weight_VH, labels_T, mask_T, teacher, OBJECTIVES["forward"], 0, group, 100
    )
    torch.testing.assert_close(found, 5 * expected(31, OBJECTIVES["forward"], 1.0)[0], **CLOSE)


@in_world(2)
def test_all_logits_of_a_cache_equal_the_teacher_itself() -> None:
    vocabulary, group = 31, dist.group.WORLD
    hidden_TH, weight_VH, teacher_TH, teacher_VH, labels_T, mask_T = problem(vocabulary)
    first, count = local_columns(32, vocabulary, group)
    rows = slice(first, first + count)
    logits_TK, ids_TK = (teacher_TH @ teacher_VH.T).topk(vocabulary)
    cached = TopKTeacher(ids_TK.int(), logits_TK - logits_TK[:, :1], first, count)
    live = HiddenTeacher(teacher_TH, teacher_VH[rows])
    losses = [
        linear_distillation(
            hidden_TH, weight_VH[rows], labels_T, mask_T, teacher, OBJECTIVES["jsd"], first, group
        )[0]
        for teacher in (cached, live)
    ]
    torch.testing.assert_close(*losses, **CLOSE)


@in_world(1)
def test_few_logits_of_a_cache_are_a_distribution_of_these_alone() -> None:
    hidden_TH, weight_VH, teacher_TH, teacher_VH, labels_T, mask_T = problem(31)
    hidden_TH.requires_grad_()
    logits_TK, ids_TK = (teacher_TH @ teacher_VH.T).topk(4)
    objective = OBJECTIVES["forward"]
    loss, _ = linear_distillation(
        hidden_TH,
        weight_VH,
        labels_T,
        mask_T,
        TopKTeacher(ids_TK, logits_TK, 0, 31),
        objective,
        0,
        dist.group.WORLD,
    )
    student_TV = hidden_TH @ weight_VH.T
    soft_TK = (student_TV / objective.temperature).log_softmax(-1).gather(1, ids_TK)
    target_TK = (logits_TK / objective.temperature).softmax(-1)
    expected_T = 0.7 * F.cross_entropy(student_TV, labels_T, reduction="none")
    expected_T = expected_T + 0.3 * 4 * F.kl_div(soft_TK, target_TK, reduction="none").sum(-1)
    expected_loss = (expected_T * mask_T).sum()
    torch.testing.assert_close(loss, expected_loss, **CLOSE)
    found, wanted = (torch.autograd.grad(x, hidden_TH)[0] for x in (loss, expected_loss))
    torch.testing.assert_close(found, wanted, **CLOSE)


@in_world(1)
def test_bf16_is_summed_in_fp32() -> None:
    hidden_TH, weight_VH, teacher_TH, teacher_VH, labels_T, mask_T = problem(31)
    wide = [part.bfloat16() for part in (hidden_TH, weight_VH, teacher_TH, teacher_VH)]
    group, objective = dist.group.WORLD, OBJECTIVES["forward"]
    found, _ = linear_distillation(
        wide[0], wide[1], labels_T, mask_T, HiddenTeacher(*wide[2:]), objective, 0, group
    )
    assert found.dtype == torch.float32
    exact = [(a @ b.T).double() for a, b in (wide[:2], wide[2:])]
    identity = torch.eye(31, dtype=torch.float64)
    whole, _ = linear_distillation(
        exact[0], identity, labels_T, mask_T, HiddenTeacher(exact[1], identity), objective, 0, group
    )
    torch.testing.assert_close(found.double(), whole, rtol=1e-5, atol=1e-5)
    plain = linear_cross_entropy(wide[0], wide[1], labels_T, mask_T, 0, group)
    alone, _ = linear_distillation(
        wide[0], wide[1], labels_T, mask_T, HiddenTeacher(*wide[2:]), OBJECTIVES["labels alone"], 0, group
    )
    torch.testing.assert_close(alone, plain, rtol=1e-5, atol=1e-5)
