"""How far a policy is from its reference: estimators per token, and the coefficient of the penalty."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]


def kl_per_token(
    logprobs_BS: Tensor, reference_BS: Tensor, mask_BS: Tensor, estimator: KLEstimator = "k1"
) -> Tensor:
    """Estimate KL(policy || reference) at each token drawn from the policy, (B, S); 0 where the mask is.

    With d = logprobs - reference (J. Schulman, "Approximating KL Divergence", 2020): k1 = d, unbiased and of any sign;
    k2 = d^2 / 2, biased, of low variance; k3 = exp(-d) - 1 + d, unbiased and never negative. Differentiable in both.
    ValueError for another name.
    """
    d_BS = (logprobs_BS - reference_BS).where(mask_BS.bool(), 0.0)
    if estimator == "k1":
        return d_BS
    if estimator == "k2":
        return d_BS.square() / 2
    if estimator == "k3":
        return torch.expm1(-d_BS) + d_BS
    raise ValueError(f"KL estimator '{estimator}' is none of {', '.join(get_args(KLEstimator))}")


@dataclass
class KLController:
    """The coefficient beta of the KL penalty: fixed, or steered towards a KL.

    target: the KL of a whole response, in nats, that is wanted; None leaves the coefficient as it is. horizon: samples in which
    the coefficient can change by a factor of about 1 + limit. limit: the largest relative error that counts.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10_000.0
    limit: float = 0.2

    def __post_init__(self) -> None:
        if self.coefficient < 0 or self.horizon <= 0 or (self.target is not None and self.target <= 0):
            raise ValueError(
                f"a KL coefficient of at least 0, a target and a horizon above 0 are needed, not {self}"
            )

    def update(self, kl: float, samples: int) -> None:
        """Take note of the mean KL of `samples` responses, in nats (Ziegler et al., arXiv:1909.08593, section 2.2).

        e = clip((KL - target) / target, -limit, limit); beta <- beta (1 + e samples / horizon), the gain as in their code.
        """
        if self.target is not None:
            error = min(max((kl - self.target) / self.target, -self.limit), self.limit)
            self.coefficient *= 1 + error * samples / self.horizon

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"coefficient": self.coefficient}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint's state."""
        self.coefficient = float(state["coefficient"])
