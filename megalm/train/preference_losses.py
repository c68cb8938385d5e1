"""Losses of preferences as functions of rewards or of log-probabilities; P counts pairs, B answers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, center_weight: float = 0.0
) -> Tensor:
    """-log sigmoid(r_c - r_r - margin) of rewards (arXiv:2203.02155, equation 1; the margin: arXiv:2307.09288, equation 2).

    center_weight: of (r_c + r_r)^2, which pairs alone leave open (arXiv:2312.09244, section 2). Returns (P).
    """
    loss_P = -F.logsigmoid(chosen_P - rejected_P - margin_P)
    return loss_P + center_weight * (chosen_P + rejected_P).square() if center_weight else loss_P


def squared_error(rewards_B: Tensor, ratings_B: Tensor) -> Tensor:
    """(r - rating)^2, (B)."""
    return (rewards_B - ratings_B).square()


def dpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)), (P): arXiv:2305.18290, equation 7.

    chosen_P, rejected_P: log-probabilities of whole answers less the reference's. label_smoothing: that share of the pairs is
    taken to be the other way round (conservative DPO, arXiv:2305.18290's authors' note on noisy labels).
    """
    margin_P = beta * (chosen_P - rejected_P)
    return -(1 - label_smoothing) * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(-margin_P)


def ipo(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """(chosen - rejected - 1 / (2 beta))^2, (P): arXiv:2310.12036, equation 17.

    chosen_P, rejected_P: log-probabilities less the reference's, means over the answers' tokens.
    """
    return (chosen_P - rejected_P - 1 / (2 * beta)).square()


def kto(
    ratio_B: Tensor,
    wanted_B: Tensor,
    baseline: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """weight x (1 - sigmoid(+-beta (ratio - baseline))), (B): arXiv:2402.01306, equation 8.

    ratio_B: log-probability of the answer less the reference's. wanted_B: boolean; the sign is - where it is false. baseline:
    an estimate of KL(model || reference), which no gradient is to go through (see `kto_baseline`).
    """
    towards_B = torch.where(wanted_B, ratio_B - baseline, baseline - ratio_B)
    wide_B = wanted_B.to(ratio_B.dtype)
    weight_B = desirable_weight * wide_B + undesirable_weight * (1 - wide_B)
    return weight_B * (1 - torch.sigmoid(beta * towards_B))


def kto_baseline(ratio_sum: Tensor, count: Tensor) -> Tensor:
    """max(0, mean ratio) over prompts with answers of others (arXiv:2402.01306, section 4.1); 0 where there are none."""
    return (ratio_sum / count.clamp(min=1)).clamp(min=0)
