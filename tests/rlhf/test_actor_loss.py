"""The losses of actor and critic on microbatches: each part and figure against its formula, and text beside answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from megalm.config import Config
from megalm.engine.base import MicroBatch
from megalm.rlhf.actor_loss import PolicyLoss, ValueLoss, is_only_update
from tests.rlhf import formulas
from tests.rlhf.runs import rl_config
from tests.rlhf.tensors import Draw, Shape

SHAPE = Shape(3, 7, "responses", 1)
KL, ENTROPY, PTX = 0.3, 0.02, 0.4


def config_of(*overrides: str) -> Config:
    return rl_config(Path("run"), Path("base"), "grpo", *overrides)


def answers() -> tuple[MicroBatch, Tensor]:
    """Answers with scores that are garbage beside their tokens, and what a model says of them, (2, B, S)."""
    draw = Draw(SHAPE)
    old_BS = draw.logprobs()
    logprobs_BS, entropy_BS = (
        one.where(draw.mask_BS, 0.0) for one in (draw.logprobs(old_BS), draw.normal().abs())
    )
    mask_BS = draw.mask_BS.double()
    scores = {
        "old": old_BS,
        "drawn": old_BS + 0.125,
        "reference": draw.logprobs(old_BS),
        "advantages": draw.normal(),
        "weights": mask_BS / 5,
        "divisors": mask_BS / 3,
    }
    scores = {name: one.nan_to_num(nan=7.0, neginf=-9.0) for name, one in scores.items()}
    ids_BS = torch.zeros(mask_BS.shape, dtype=torch.long)
    output = torch.stack([logprobs_BS, entropy_BS]).requires_grad_()
    return MicroBatch(ids_BS, ids_BS, mask_BS, scores=scores), output


def text() -> tuple[MicroBatch, Tensor]:
    """Text to go on learning."""
    draw = Draw(Shape(2, 7, "random", 2))
    ids_BS = torch.zeros(draw.mask_BS.shape, dtype=torch.long)
    return MicroBatch(ids_BS, ids_BS, draw.mask_BS.double()), torch.stack(
        [-draw.normal().abs().nan_to_num(), draw.normal().abs().nan_to_num()]
    )


def numpy_of(*tensors: Tensor) -> list[np.ndarray]:
    return [one.detach().double().numpy() for one in tensors]


@pytest.mark.parametrize("weighted", [True, False])
def test_each_part_has_its_sum_and_divisor(weighted: bool) -> None:
    config = config_of(
        f"rlhf.policy.entropy_coefficient={ENTROPY}",
        f"rlhf.policy.ptx_coefficient={PTX}",
        "rlhf.policy.clip_low=0.1",
        "rlhf.policy.clip_high=0.3",
        "rlhf.policy.dual_clip=1.5",
        f"rlhf.kl.weighted={weighted}",
        "data.train=[{path: text}]",
    )
    loss = PolicyLoss(config, KL)
    assert loss.parts == ("policy", "entropy_bonus", "kl_penalty", "ptx")
    microbatch, output = answers()
    mask_BS, scores = microbatch.loss_mask_BS.bool(), microbatch.scores
    found = dict(zip((*loss.parts, *loss.figures), loss.sum(output, microbatch), strict=True))
    logprobs_BS, entropy_BS = output
    arrays = numpy_of(logprobs_BS, scores["old"], scores["advantages"])
    bounds = 0.1, 0.3, 1.5, "token", "constant_length", 1
    policy, slope = formulas.policy(*arrays, mask_BS.numpy(), *bounds)
    counted = len(mask_BS)
    assert float(found["policy"].detach()) == pytest.approx(policy * counted / 5, rel=1e-9)
    (gradient,) = torch.autograd.grad(found["policy"], output, retain_graph=True)
    torch.testing.assert_close(gradient[0], torch.from_numpy(slope * counted / 5))
    assert not gradient[1].any()
    entropy = float((entropy_BS * mask_BS).sum().detach())
    assert float(found["entropy_bonus"].detach()) == pytest.approx(-ENTROPY * entropy / 5, rel=1e-9)
    tokens = [(b, t) for b, t in zip(*np.nonzero(mask_BS.numpy()), strict=True)]
    kl = 0.0
    for b, t in tokens:
        new, old, reference = (
            float(one[b, t]) for one in (logprobs_BS.detach(), scores["old"], scores["reference"])
        )
        kl += formulas.kl(new, reference, "k3")[0] * (np.exp(new - old) if weighted else 1.0)
    assert float(found["kl_penalty"].detach()) == pytest.approx(KL * kl / 5, rel=1e-9)
    assert float(found["ptx"]) == 0
    assert float(found["entropy"]) == pytest.approx(entropy, rel=1e-9)
    apart = [formulas.kl(float(scores["old"][at]), float(logprobs_BS.detach()[at]), "k3")[0] for at in tokens]
    assert float(found["approximate_kl"]) == pytest.approx(sum(apart), rel=1e-9)
    divisors = len(tokens) / 3
    wanted = [divisors, divisors, divisors, 0, *[len(tokens)] * len(loss.figures)]
    assert loss.weight(microbatch).tolist() == pytest.approx(wanted)


def test_text_counts_in_its_own_part_alone() -> None:
    loss = PolicyLoss(config_of(f"rlhf.policy.ptx_coefficient={PTX}", "data.train=[{path: text}]"), 0.0)
    microbatch, output = text()
    mask_BS = microbatch.loss_mask_BS
    wanted = [0.0] * (2 + len(loss.figures))
    wanted[loss.parts.index("ptx")] = -PTX * float((output[0] * mask_BS).sum())
    assert loss.sum(output, microbatch).tolist() == pytest.approx(wanted)
    wanted[loss.parts.index("ptx")] = float(mask_BS.sum())
    assert loss.weight(microbatch).tolist() == wanted


def test_in_the_only_update_ratios_are_one_and_the_gap_is_to_what_was_drawn() -> None:
    """Old log-probabilities are not asked for; the gradient is the policy gradient, which no bound stops."""
    config = config_of("batch.global_batch_size=16", "rlhf.kl.coefficient=0")
    loss = PolicyLoss(config, 0.0)
    assert loss.is_only_update
    microbatch, output = answers()
    scores = microbatch.scores
    del scores["old"]
    sums = dict(zip((*loss.parts, *loss.figures), loss.sum(output, microbatch), strict=True))
    mask_BS = microbatch.loss_mask_BS
    (gradient,) = torch.autograd.grad(sums["policy"], output)
    torch.testing.assert_close(gradient[0], -scores["advantages"] * scores["weights"])
    gap = ((output[0].detach() - scores["drawn"]).abs() * mask_BS).sum()
    assert float(sums["logprob_gap"]) == pytest.approx(float(gap), rel=1e-9)
    for name in ("clipped_low", "clipped_high", "approximate_kl"):
        assert float(sums[name]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (("batch.global_batch_size=16",), True),
        (("batch.global_batch_size=8",), False),
        (("batch.global_batch_size=16", "rlhf.policy.epochs=2"), False),
    ],
)
def test_whether_a_steps_answers_serve_one_update(overrides: tuple[str, ...], wanted: bool) -> None:
    assert is_only_update(config_of(*overrides)) == wanted


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_critics_loss_is_of_the_answers_tokens(clip: float | None) -> None:
    draw = Draw(SHAPE)
    values_BS, old_BS, returns_BS = (
        draw.normal(garbage=5.0),
        draw.normal(garbage=5.0),
        draw.normal(garbage=5.0),
    )
    ids_BS = torch.zeros(draw.mask_BS.shape, dtype=torch.long)
    scores = {"values": old_BS, "returns": returns_BS}
    microbatch = MicroBatch(ids_BS, ids_BS, draw.mask_BS.double(), scores=scores)
    loss = ValueLoss(clip)
    wanted, _ = formulas.value(*numpy_of(values_BS, old_BS, returns_BS), draw.mask_BS.numpy(), clip)
    assert float(loss.sum(values_BS, microbatch)) == pytest.approx(wanted, rel=1e-9)
    assert float(loss.weight(microbatch)) == int(draw.mask_BS.sum())
