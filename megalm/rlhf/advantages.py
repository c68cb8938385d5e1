"""From what a response is worth to what each of its tokens is: rewards, returns and advantages.

A mask_BS is 1 (or true) at the tokens of responses, which may have others between them, and 0 elsewhere; what other arguments
hold there does not matter, and results are 0 there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def token_rewards(scores_B: Tensor, kl_BS: Tensor, mask_BS: Tensor, coefficient: float) -> Tensor:
    """-coefficient x KL at each token, and the response's score at its last one, (B, S).

    Ziegler et al. (arXiv:1909.08593, equation 2) per token, as in InstructGPT (arXiv:2203.02155, equation 2). A row without
    tokens gets no score.
    """
    rewards_BS = (-coefficient * kl_BS).where(mask_BS.bool(), 0.0)
    return rewards_BS + scores_B[:, None].where(is_last(mask_BS), 0.0)


def is_last(mask_BS: Tensor) -> Tensor:
    """Boolean (B, S): true at each row's last token of the mask."""
    counted_BS = mask_BS.bool()
    left_BS = counted_BS.long().flip(1).cumsum(1).flip(1)
    return counted_BS & (left_BS == 1)


def gae(
    rewards_BS: Tensor,
    values_BS: Tensor,
    mask_BS: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the tokens of the mask; returns (advantages, returns), both (B, S).

    delta_t = r_t + gamma V_t+1 - V_t and A_t = delta_t + gamma lam A_t+1 (arXiv:1506.02438, section 3); the return is A_t + V_t.
    values_BS: V_t, of the text before token t. V behind the last token is 0, also where a response was cut off at the longest
    length: its reward is for all of it, and a value added to that would be learned and added again, without end. No gradient passes.
    """
    mask_BS = mask_BS.bool()
    rewards_BS, values_BS = rewards_BS.detach(), values_BS.detach()
    next_value_B = torch.zeros_like(values_BS[:, 0])
    advantage_B = torch.zeros_like(next_value_B)
    advantages_BS = torch.zeros_like(values_BS)
    for t in reversed(range(values_BS.shape[1])):
        here_B = mask_BS[:, t]
        delta_B = rewards_BS[:, t] + gamma * next_value_B - values_BS[:, t]
        advantage_B = (delta_B + gamma * lam * advantage_B).where(here_B, advantage_B)
        next_value_B = values_BS[:, t].where(here_B, next_value_B)
        advantages_BS[:, t] = advantage_B.where(here_B, 0.0)
    return advantages_BS, (advantages_BS + values_BS).where(mask_BS, 0.0)


def masked_sums(values_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """(count, sum, sum of squares) over the mask, float64, shape (3): those of several ranks or microbatches add up.

    In float64 the order of addition is far below what float32 shows.
    """
    mask_BS = mask_BS.bool()
    wide_BS = values_BS.detach().double().where(mask_BS, 0.0)
    return torch.stack([mask_BS.sum().double(), wide_BS.sum(), wide_BS.square().sum()])


def mean_and_variance(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance, float64 scalars, from `masked_sums`; 0 where there are too few values."""
    count, total, squares = sums.unbind()
    mean = total / count.clamp(min=1)
    return mean, (squares - mean * total).clamp(min=0) / (count - 1).clamp(min=1)


def whiten(
    values_BS: Tensor,
    mask_BS: Tensor,
    sums: Tensor | None = None,
    shift_mean: bool = True,
    epsilon: float = 1e-8,
) -> Tensor:
    """(values - mean) / sqrt(variance + epsilon) over the mask, (B, S); the mean stays where it is without `shift_mean`.

    sums: `masked_sums` of the whole batch, where these values are a part of it.
    """
    mean, variance = mean_and_variance(masked_sums(values_BS, mask_BS) if sums is None else sums)
    wide_BS = (values_BS.double() - mean) * (variance + epsilon).rsqrt()
    if not shift_mean:
        wide_BS = wide_BS + mean
    return wide_BS.where(mask_BS.bool(), 0.0).to(values_BS.dtype)


def explained_variance(residual_sums: Tensor, return_sums: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns), from the `masked_sums` of both; 0 where the returns do not vary.

    1: the values say all; 0: no more than a constant would; below: less than that.
    """
    variance = float(mean_and_variance(return_sums)[1])
    return 1 - float(mean_and_variance(residual_sums)[1]) / variance if variance > 0 else 0.0


def group_advantages(scores_B: Tensor, group_size: int, divide_by_std: bool = True) -> tuple[Tensor, int]:
    """Scores against the mean of their group, (B), and how many groups have one score alone and thus teach nothing.

    A group is `group_size` rows in turn, answers to one prompt. GRPO divides by the group's standard deviation
    (arXiv:2402.03300, section 4.1.2; unbiased, + 1e-4), Dr. GRPO does not (arXiv:2503.20783). ValueError where the rows are no
    whole groups.
    """
    scores_GN = _groups(scores_B, group_size).double()
    is_level_G = scores_GN.amax(1) == scores_GN.amin(1)
    advantages_GN = scores_GN - scores_GN.mean(1, keepdim=True)
    if divide_by_std and group_size > 1:
        advantages_GN = advantages_GN / (scores_GN.std(1, keepdim=True) + 1e-4)
    # the mean of equal numbers may be off by a rounding, which must not be divided by almost nothing
    advantages_GN = advantages_GN.masked_fill(is_level_G[:, None], 0.0)
    return advantages_GN.flatten().to(scores_B.dtype), int(is_level_G.sum())


def leave_one_out_advantages(scores_B: Tensor, group_size: int) -> tuple[Tensor, int]:
    """RLOO: each score against the mean of the others of its group, (B), and how many groups have one score alone.

    arXiv:2402.14740, section 3. A group is `group_size` rows in turn. ValueError where the rows are no whole groups, or a
    group has no others.
    """
    if group_size < 2:
        raise ValueError(f"leave-one-out needs groups of at least 2, not {group_size}")
    advantages_B, level = group_advantages(scores_B.double(), group_size, divide_by_std=False)
    return (advantages_B * group_size / (group_size - 1)).to(scores_B.dtype), level


def _groups(scores_B: Tensor, group_size: int) -> Tensor:
    if group_size < 1 or len(scores_B) % group_size:
        raise ValueError(f"{len(scores_B)} scores are no whole groups of {group_size}")
    return scores_B.detach().view(-1, group_size)


@dataclass
class RunningMoments:
    """Count, mean and sum of squared deviations of all values so far, as plain floats.

    B. P. Welford (Technometrics 4(3), 1962), whole batches at a time by Chan, Golub and LeVeque's formula (1983), which loses
    nothing, however the values came in parts.
    """

    count: float = 0.0
    mean: float = 0.0
    deviations: float = 0.0

    def update(self, values_B: Tensor) -> None:
        """Take in values; of several ranks, all of them in one order."""
        if values_B.numel():
            wide_B = values_B.detach().double()
            mean = wide_B.mean()
            self.merge(RunningMoments(values_B.numel(), float(mean), float((wide_B - mean).square().sum())))

    def merge(self, other: "RunningMoments") -> None:
        """Take in what another has seen."""
        if other.count:
            count, shift = self.count + other.count, other.mean - self.mean
            self.mean += shift * other.count / count
            self.deviations += other.deviations + shift**2 * self.count * other.count / count
            self.count = count

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 as long as all values are equal but for rounding, which is not to be blown up."""
        std = (self.deviations / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0
        return std if std > 1e-12 * abs(self.mean) else 1.0

    def normalise(self, values_B: Tensor, shift_mean: bool = True) -> Tensor:
        """Values less the mean, if so wished, over the standard deviation."""
        return (values_B - (self.mean if shift_mean else 0.0)) / self.std

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"count": self.count, "mean": self.mean, "deviations": self.deviations}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint's state."""
        self.count, self.mean, self.deviations = (float(state[n]) for n in ("count", "mean", "deviations"))
