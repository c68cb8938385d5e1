"""Losses of policy and value function, per token, and how tokens add up to a loss.

A mask_BS is 1 (or true) at the tokens of responses and 0 elsewhere; what other arguments hold there does not matter, results are
0 there, and no gradient comes from there.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from megalm.rlhf.kl import KLEstimator, kl_per_token

Aggregation = Literal["token_mean", "sequence_mean", "constant_length"]
RatioLevel = Literal["token", "sequence"]


def token_weights(
    mask_BS: Tensor, aggregation: Aggregation, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return (weights of the tokens (B, S), their share of the divisor, a scalar), both in float32 at least.

    The loss is the sum of weight x token's loss over the sum of divisors, both over the whole global batch. `token_mean`: all
    tokens count alike (DAPO, arXiv:2503.14476). `sequence_mean`: the mean over responses of the mean over their
    tokens (GRPO, arXiv:2402.03300, equation 3). `constant_length`: of the sum over their tokens / `length` (Dr. GRPO,
    arXiv:2503.20783). Rows without tokens do not count. ValueError for another name, or no length where one is needed.
    """
    weights_BS = mask_BS.bool().to(torch.promote_types(mask_BS.dtype, torch.float32))
    counts_B = weights_BS.sum(1)
    if aggregation == "token_mean":
        return weights_BS, counts_B.sum()
    sequences = (counts_B > 0).to(weights_BS.dtype).sum()
    if aggregation == "sequence_mean":
        return weights_BS / counts_B.clamp(min=1)[:, None], sequences
    if aggregation == "constant_length":
        if not length:
            raise ValueError("aggregation 'constant_length' needs the length")
        return weights_BS / length, sequences
    raise ValueError(f"aggregation '{aggregation}' is none of {', '.join(get_args(Aggregation))}")


@dataclass(frozen=True)
class Clip:
    """Within which bounds the ratio of new to old probability goes on counting.

    low, high: the bounds are 1 - low and 1 + high (PPO: equal, arXiv:1707.06347; DAPO's clip-higher, arXiv:2503.14476: high
    above low). dual: where the advantage is negative, the loss is at most dual x |advantage|, dual > 1
    (arXiv:1912.09729). level: ratios of each token, or one of the whole response (GSPO, arXiv:2507.18071).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    level: RatioLevel = "token"


def log_ratio(logprobs_BS: Tensor, old_BS: Tensor, mask_BS: Tensor, level: RatioLevel = "token") -> Tensor:
    """Logarithm of new over old probability, (B, S).

    level: `token`, or `sequence`, the mean over the response's tokens for each of them (GSPO, arXiv:2507.18071, equation 7).
    ValueError for another name.
    """
    mask_BS = mask_BS.bool()
    log_ratio_BS = (logprobs_BS - old_BS).where(mask_BS, 0.0)
    if level == "token":
        return log_ratio_BS
    if level == "sequence":
        mean_B1 = log_ratio_BS.sum(1, keepdim=True) / mask_BS.sum(1, keepdim=True).clamp(min=1)
        return mean_B1.where(mask_BS, 0.0)
    raise ValueError(f"level '{level}' is none of {', '.join(get_args(RatioLevel))}")


def policy_loss(
    logprobs_BS: Tensor, old_BS: Tensor, advantages_BS: Tensor, mask_BS: Tensor, clip: Clip
) -> Tensor:
    """-min(ratio A, clip(ratio) A) of each token, (B, S) (PPO, arXiv:1707.06347, equation 7).

    logprobs_BS: of the policy that learns; old_BS: of the one that drew the tokens. For one advantage a response, broadcast it.
    With a ratio of whole responses, `sequence_mean` makes GSPO's loss of this.
    """
    ratio_BS = log_ratio(logprobs_BS, old_BS, mask_BS, clip.level).exp()
    advantages_BS = advantages_BS.where(mask_BS.bool(), 0.0)
    clipped_BS = ratio_BS.clamp(1 - clip.low, 1 + clip.high)
    objective_BS = torch.minimum(ratio_BS * advantages_BS, clipped_BS * advantages_BS)
    if clip.dual is not None:
        floor_BS = torch.maximum(objective_BS, clip.dual * advantages_BS)
        objective_BS = floor_BS.where(advantages_BS < 0, objective_BS)
    return -objective_BS


def kl_loss(
    logprobs_BS: Tensor,
    old_BS: Tensor,
    reference_BS: Tensor,
    mask_BS: Tensor,
    estimator: KLEstimator = "k3",
    weighted: bool = True,
) -> Tensor:
    """KL(policy || reference) as a part of the loss, estimated at each token, (B, S) (see `kl_per_token`).

    An estimate's gradient is not that of the KL, for the policy draws the tokens as well. `weighted` by the ratio of new to
    old probability, k1's and k3's are (DeepSeek-V3.2, arXiv:2512.02556); k2's is without, before the first update. GRPO had
    k3 without (arXiv:2402.03300, equation 4).
    """
    kl_BS = kl_per_token(logprobs_BS, reference_BS, mask_BS, estimator)
    return kl_BS * log_ratio(logprobs_BS, old_BS, mask_BS).exp() if weighted else kl_BS


def policy_figures(
    logprobs_BS: Tensor, old_BS: Tensor, advantages_BS: Tensor, mask_BS: Tensor, clip: Clip
) -> dict[str, Tensor]:
    """Sums over the tokens of the mask, float64 scalars without gradient; divide by their number for means.

    `clipped_low`, `clipped_high`: tokens whose gradient the lower or the upper bound stops; `ratio` and `ratio_squared`;
    `approximate_kl`: k3 of old against new policy (see `kl_per_token`), whose tokens the old one drew.
    """
    mask_BS = mask_BS.bool()
    wide = logprobs_BS.detach().double(), old_BS.detach().double()
    ratio_BS = log_ratio(*wide, mask_BS, clip.level).exp()
    figures = {
        "clipped_low": (ratio_BS < 1 - clip.low) & (advantages_BS < 0),
        "clipped_high": (ratio_BS > 1 + clip.high) & (advantages_BS > 0),
        "ratio": ratio_BS,
        "ratio_squared": ratio_BS.square(),
        "approximate_kl": kl_per_token(wide[1], wide[0], mask_BS, "k3"),
    }
    return {name: value_BS.double().where(mask_BS, 0.0).sum() for name, value_BS in figures.items()}


def value_loss(
    values_BS: Tensor, old_values_BS: Tensor, returns_BS: Tensor, mask_BS: Tensor, clip: float | None = None
) -> Tensor:
    """Half the squared distance of each token's value from its return, (B, S).

    clip: the larger of that and the distance of the value kept within `clip` of the old one, as PPO's first implementation has
    it (see arXiv:2005.12729, section 3).
    """
    mask_BS = mask_BS.bool()
    values_BS, old_values_BS, returns_BS = (
        part_BS.where(mask_BS, 0.0) for part_BS in (values_BS, old_values_BS, returns_BS)
    )
    squares_BS = (values_BS - returns_BS).square()
    if clip is not None:
        near_BS = old_values_BS + (values_BS - old_values_BS).clamp(-clip, clip)
        squares_BS = torch.maximum(squares_BS, (near_BS - returns_BS).square())
    return squares_BS / 2
