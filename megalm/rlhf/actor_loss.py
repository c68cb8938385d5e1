"""What actor and critic minimise on answers of their own."""

from typing import Any

import torch
from torch import Tensor, nn

from megalm.config.schema import Config
from megalm.engine.base import MicroBatch
from megalm.model.sequence_head import token_outputs
from megalm.model.token_logprobs import LogprobHead
from megalm.rlhf.losses import Clip, kl_loss, policy_figures, policy_loss, value_loss

FIGURES: tuple[str, ...] = ("clipped_low", "clipped_high", "approximate_kl", "entropy")


class PolicyLoss:
    """The clipped objective, as far as wanted with a bonus for entropy, a penalty for leaving the reference and text to go on
    learning (see `engine.base.Loss`).

    A microbatch of answers brings the scores `weights` and `divisors` (the loss is the sum of weights x tokens' losses over that
    of the divisors), `advantages`, `drawn` and `old` (log-probabilities by rollout and before the first update) and, for the
    penalty, `reference`; one of text brings none.
    """

    def __init__(self, config: Config, kl_coefficient: float) -> None:
        """kl_coefficient: of the penalty in the loss, 0 where there is none."""
        self.is_only_update = is_only_update(config)
        policy = config.rlhf.policy
        self.clip = Clip(policy.clip_low, policy.clip_high, policy.dual_clip, policy.ratio)
        self.temperature = config.rlhf.rollout.temperature
        self.weighted = config.rlhf.kl.weighted
        self.coefficients = {"policy": 1.0} | {
            name: value
            for name, value in {
                "entropy_bonus": policy.entropy_coefficient,
                "kl_penalty": kl_coefficient,
                "ptx": policy.ptx_coefficient,
            }.items()
            if value
        }
        self.parts = tuple(self.coefficients)
        self.figures = (*FIGURES, "logprob_gap") if self.is_only_update else FIGURES

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """The divisors of each part and of the figures."""
        scores, mask_BS = microbatch.scores, microbatch.loss_mask_BS
        none = mask_BS.new_zeros((), dtype=torch.float64)
        is_text = "advantages" not in scores
        divisor = none if is_text else scores["divisors"].double().sum()
        tokens = mask_BS.double().sum()
        parts = [(tokens if is_text else none) if name == "ptx" else divisor for name in self.parts]
        return torch.stack([*parts, *[none if is_text else tokens] * len(self.figures)])

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is log-probabilities of the labels and entropies, (2, B, S)."""
        state = microbatch.forward_state()
        is_text = "advantages" not in microbatch.scores
        temperature = 1.0 if is_text else self.temperature
        state.head = LogprobHead(microbatch.labels_BS, microbatch.loss_mask_BS, temperature)
        return model(microbatch.tokens_BS, state)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Sums of the parts, each with its coefficient, and of the figures."""
        logprobs_BS, entropy_BS = output
        scores, mask_BS = microbatch.scores, microbatch.loss_mask_BS
        none = logprobs_BS.new_zeros(())
        if "advantages" not in scores:
            ptx = -(logprobs_BS * mask_BS).sum() * self.coefficients.get("ptx", 0.0)
            return torch.stack([ptx if name == "ptx" else none for name in (*self.parts, *self.figures)])
        old_BS = logprobs_BS.detach() if self.is_only_update else scores["old"]
        advantages_BS, weights_BS = scores["advantages"], scores["weights"]
        losses_BS = {"policy": policy_loss(logprobs_BS, old_BS, advantages_BS, mask_BS, self.clip)}
        if "entropy_bonus" in self.coefficients:
            losses_BS["entropy_bonus"] = -entropy_BS
        if "kl_penalty" in self.coefficients:
            losses_BS["kl_penalty"] = kl_loss(
                logprobs_BS, old_BS, scores["reference"], mask_BS, weighted=self.weighted
            )
        sums = [
            (losses_BS[name] * weights_BS).sum() * coefficient if name in losses_BS else none
            for name, coefficient in self.coefficients.items()
        ]
        figures = policy_figures(logprobs_BS, old_BS, advantages_BS, mask_BS, self.clip)
        figures["entropy"] = (entropy_BS.detach() * mask_BS).sum()
        figures["logprob_gap"] = ((logprobs_BS.detach() - scores["drawn"]).abs() * mask_BS).sum()
        return torch.stack([*sums, *(figures[name].to(logprobs_BS.dtype) for name in self.figures)])


def is_only_update(config: Config) -> bool:
    """Whether a step's answers serve one update alone: the policy that learns is the one that drew them."""
    rollout, policy = config.rlhf.rollout, config.rlhf.policy
    samples = rollout.prompts_per_step * rollout.responses_per_prompt
    return policy.epochs == 1 and samples == config.batch.global_batch_size


class ValueLoss:
    """Half the mean squared distance of values from returns, which the microbatch brings as scores with the old values."""

    parts: tuple[str, ...] = ("value",)
    figures: tuple[str, ...] = ()

    def __init__(self, clip: float | None) -> None:
        self.clip = clip

    def weight(self, microbatch: MicroBatch) -> Tensor:
        """Tokens of answers."""
        return microbatch.loss_mask_BS.double().sum()

    def forward(self, model: nn.Module, microbatch: MicroBatch) -> Tensor:
        """The last stage's output is the values, (B, S)."""
        state = microbatch.forward_state()
        state.head = values
        return model(microbatch.tokens_BS, state)

    def sum(self, output: Tensor, microbatch: MicroBatch) -> Tensor:
        """Sum over the tokens."""
        scores = microbatch.scores
        loss_BS = value_loss(output, scores["values"], scores["returns"], microbatch.loss_mask_BS, self.clip)
        return loss_BS.sum()


def values(model: Any, hidden_states: Tensor) -> Tensor:
    """The first output of a sequence head at each token, (B, S); a `ForwardState.head`."""
    return token_outputs(model, hidden_states)[..., 0]
