"""Losses of preferences equal those that TRL's trainers make of the same numbers, values and gradients. Needs trl."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from megalm.train.preference_losses import bradley_terry, dpo, ipo, kto, kto_baseline

trl = pytest.importorskip("trl")

PAIRS, LENGTH, BETA = 5, 9, 0.3


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trainer(**settings: Any) -> MagicMock:
    """In the place of a trainer: its settings; what it logs goes nowhere."""
    found = MagicMock(**settings)
    found.accelerator.gather = found.accelerator.gather_for_metrics = lambda x: x
    found.accelerator.device = torch.device("cpu")
    found._total_train_tokens = 0
    found._tp_size = 1
    return found


def answers(rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of rows with answers of several lengths, and log-probabilities of their tokens (0 outside), of which TRL takes the
    loss."""
    lengths = torch.arange(rows) % (LENGTH - 2) + 1
    mask = (torch.arange(LENGTH)[None] >= LENGTH - lengths[:, None]).long()
    logprobs = (drawn(1, rows, LENGTH - 1) * mask[:, 1:]).requires_grad_()
    ids = torch.ones(rows, LENGTH, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": ids, "completion_mask": mask}, logprobs


class Model:
    """Gives the log-probabilities it was made with; `training`, as a module would say."""

    training = True

    def __init__(self, logprobs: Tensor) -> None:
        self.logprobs = logprobs

    def __call__(self, **_: Any) -> SimpleNamespace:
        zeros = torch.zeros_like(self.logprobs)
        return SimpleNamespace(
            log_probs=self.logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )


def assert_same(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (ours, theirs)]
    assert gradients[0].any()
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("center", [0.0, 0.2])
def test_reward_pairs(center: float) -> None:
    rewards = drawn(0, 2 * PAIRS, 1).requires_grad_()
    margin = drawn(1, PAIRS).abs()
    model = MagicMock(return_value=SimpleNamespace(logits=rewards))
    inputs = {
        "input_ids": torch.ones(2 * PAIRS, 3),
        "attention_mask": torch.ones(2 * PAIRS, 3),
        "margin": margin,
    }
    settings = SimpleNamespace(center_rewards_coefficient=center or None)
    theirs = trl.RewardTrainer.compute_loss(trainer(args=settings), model, inputs)
    ours = bradley_terry(rewards[:PAIRS, 0], rewards[PAIRS:, 0], margin, center).mean()
    assert_same(ours, theirs, rewards)


@pytest.mark.parametrize("name", ["sigmoid", "ipo"])
def test_pairs_beside_a_reference(name: str) -> None:
    inputs, logprobs = answers(2 * PAIRS)
    reference = drawn(2, 2 * PAIRS)
    inputs |= {"ref_chosen_logps": reference[:PAIRS], "ref_rejected_logps": reference[PAIRS:]}
    stand_in = trainer(
        beta=BETA,
        loss_types=[name],
        loss_weights=[1.0],
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        aux_loss_enabled=False,
        label_smoothing=0.0,
    )
    theirs = trl.DPOTrainer._compute_loss(stand_in, Model(logprobs), inputs, False)
    ratio = logprobs.sum(1) - reference
    if name == "ipo":
        ratio = ratio / inputs["completion_mask"].sum(1)
        ours = ipo(ratio[:PAIRS], ratio[PAIRS:], BETA).mean()
    else:
        ours = dpo(ratio[:PAIRS], ratio[PAIRS:], BETA).mean()
    assert_same(ours, theirs, logprobs)


@pytest.mark.parametrize("shift", [-50.0, 50.0], ids=["baseline above zero", "baseline at zero"])
def test_kto(shift: float) -> None:
    inputs, logprobs = answers(2 * PAIRS)
    reference, mismatched = drawn(2, 2 * PAIRS), drawn(3, 2 * PAIRS)
    wanted = torch.arange(2 * PAIRS) % 3 > 0
    # the same model gives the mismatched answers' log-probabilities: what differs from the reference is what counts
    others = logprobs.detach().sum(1) - mismatched - shift / PAIRS
    inputs |= {"label": wanted, "ref_logps": reference, "ref_KL_logps": others}
    stand_in = trainer(
        beta=BETA,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        aux_loss_enabled=False,
        _compute_kl_logps=lambda model, batch: logprobs.detach().sum(1),
    )
    theirs = trl.KTOTrainer._compute_loss(stand_in, Model(logprobs), inputs, False)
    ratios = logprobs.detach().sum(1) - others
    baseline = kto_baseline(ratios.sum(), torch.tensor(2 * PAIRS))
    assert bool(baseline > 0) == (shift > 0)
    ours = kto(logprobs.sum(1) - reference, wanted, baseline, BETA, 1.5, 0.5).mean()
    assert_same(ours, theirs, logprobs)
