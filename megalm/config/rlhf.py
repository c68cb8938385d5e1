"""The section `rlhf`: tasks `ppo`, `grpo` and `rloo`, in which a model learns from what its own answers are worth."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from megalm.config.prompts import PromptsConfig
from megalm.config.rewards import Rewards
from megalm.config.section import Section

if TYPE_CHECKING:
    from megalm.config.schema import ParallelConfig

RL_TASKS = ("ppo", "grpo", "rloo")
_LAYOUT = {"ranks", "tensor_model_parallel_size", "pipeline_model_parallel_size"}
MAY_CHANGE = {
    "eval_prompts": True,
    "offload_frozen": True,
    "frozen": True,
    "samples_shown": True,
    "alarms": True,
    "rollout": _LAYOUT | {"max_rows", "cache_gib", "max_logprob_gap"},
    "critic": _LAYOUT | {"load"},
}
"""Fields, in pydantic's form, that a run may go on with other values of: what is learned does not hang on them."""


class OwnRanks(Section):
    """On which ranks a role computes, and how they share its model."""

    ranks: int = Field(
        0,
        ge=0,
        description="Processes for it alone, beside those that train: a world of their own, the last ranks of the run; "
        "0: it shares the training's.",
    )
    tensor_model_parallel_size: int | None = Field(
        None, gt=0, description="TP of its model; default: the training's."
    )
    pipeline_model_parallel_size: int | None = Field(
        None, gt=0, description="PP of its model; default: the training's."
    )

    def sizes(self, training: "ParallelConfig") -> tuple[int, int]:
        """TP and PP."""
        return (
            self.tensor_model_parallel_size or training.tensor_model_parallel_size,
            self.pipeline_model_parallel_size or training.pipeline_model_parallel_size,
        )


class RolloutConfig(OwnRanks):
    """How the model answers prompts to learn from."""

    prompts_per_step: int = Field(32, gt=0, description="Prompts answered in a step, over all ranks.")
    responses_per_prompt: int = Field(
        1, gt=0, description="Answers to each: the group that `grpo` and `rloo` compare, at least 2 there."
    )
    max_new_tokens: int = Field(128, gt=0, description="Longest answer.")
    temperature: float = Field(
        1.0, ge=1e-6, allow_inf_nan=False, description="Of sampling; training divides its logits by it, too."
    )
    top_k: int = Field(
        0, ge=0, description="Sample among so many tokens alone; 0: all, the distribution that is trained."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the likeliest of this sum; 1: all.")
    stop: list[str] = Field(
        default_factory=list, description="Strings that end an answer, beside the template's end of a turn."
    )
    max_rows: int = Field(64, gt=0, description="Answers that a copy of the model writes side by side.")
    cache_gib: float | None = Field(
        None, gt=0, description="Memory of a rank for keys and values; default: half of what is free."
    )
    tensor_model_parallel_size: int | None = Field(
        None,
        gt=0,
        description="TP of the copies that answer; default: the training's. With it, `ranks` or another PP they are an engine of "
        "their own, and weights pass to them in memory before each step's answers.",
    )
    max_logprob_gap: float = Field(
        0.05,
        gt=0,
        description="Largest mean difference of the log-probabilities that rollout and training give to the same tokens; "
        "beyond it before the first update the run is refused.",
    )


class KlConfig(Section):
    """The penalty for leaving the reference."""

    reference: str | None = Field(
        None,
        description="Run or checkpoint of the frozen reference; default: run.load. With adapters it is the model without them.",
    )
    coefficient: float = Field(
        0.05, ge=0, allow_inf_nan=False, description="Beta; 0 needs no reference and measures no KL."
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1",
        description="Of the KL per token: k1 = d, k2 = d^2/2, k3 = e^-d - 1 + d, d the log ratio to the reference.",
    )
    placement: Literal["auto", "reward", "loss"] = Field(
        "auto",
        description="Subtracted from the reward (`auto` for ppo and rloo) or added to the loss (for grpo, as k3).",
    )
    weighted: bool = Field(
        True,
        description="In the loss: weight the estimate by the ratio of new to old probability, so that its gradient is the KL's; "
        "false is GRPO as first published.",
    )
    target: float | None = Field(
        None,
        gt=0,
        description="KL of a response, in nats, that the coefficient is steered towards (arXiv:1909.08593); default: it is fixed.",
    )
    horizon: float = Field(
        10_000.0, gt=0, description="With `target`: samples in which the coefficient follows."
    )


class PolicyConfig(Section):
    """What is minimised."""

    epochs: int = Field(1, gt=0, description="Passes over the answers of a step.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="The ratio counts from 1 - this ...")
    clip_high: float = Field(
        0.2, gt=0, description="... to 1 + this; above clip_low it is DAPO's clip-higher."
    )
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="Bounds the loss of unlikely bad tokens by this x |advantage| (arXiv:1912.09729).",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="Of each token, or of the whole answer (GSPO, arXiv:2507.18071)."
    )
    aggregation: Literal["auto", "token_mean", "sequence_mean", "constant_length"] = Field(
        "auto",
        description="How tokens add up: all alike (`auto` for ppo and grpo), answers alike (for GSPO), or the sum over "
        "max_new_tokens (for rloo, whose gradient is of whole answers; Dr. GRPO, arXiv:2503.20783).",
    )
    entropy_coefficient: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Bonus for the entropy of each token's distribution."
    )
    divide_by_std: bool = Field(
        True, description="`grpo`: divide by the group's standard deviation; Dr. GRPO does not."
    )
    gamma: float = Field(1.0, ge=0, le=1, description="`ppo`: discount.")
    lam: float = Field(0.95, ge=0, le=1, description="`ppo`: lambda of the generalised advantage estimation.")
    whiten: bool = Field(True, description="`ppo`: advantages of a step get mean 0 and variance 1.")
    ptx_coefficient: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the next-token loss on as many samples of data.train in each update (PPO-ptx, arXiv:2203.02155).",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep a moving average of the weights with this decay an update, saved in each checkpoint as `ema`.",
    )


class CriticConfig(OwnRanks):
    """`ppo`: the model that foretells rewards."""

    load: str | None = Field(
        None,
        description="Run or checkpoint that it begins with: a reward model, or a critic; of a language model it takes all but "
        "the head. Default: the reward model in rlhf.rewards, else run.load.",
    )
    lr: float | None = Field(None, gt=0, description="Peak learning rate; default: optimizer.lr.")
    clip: float | None = Field(
        0.2, gt=0, description="How far a value may move from the old one in a step's loss."
    )
    warmup_steps: int = Field(0, ge=0, description="First steps in which the critic alone learns.")


class FrozenConfig(OwnRanks):
    """Reference and reward models; without `ranks` they have the training's layout."""


class AlarmConfig(Section):
    """What tells that the model has learned to please the reward rather than people."""

    max_kl: float | None = Field(None, gt=0, description="KL of a response, in nats, that rings.")
    max_length_growth: float | None = Field(
        None, gt=1, description="Mean length of answers, relative to the first steps', that rings."
    )
    patience: int = Field(3, gt=0, description="Steps in a row before something is done.")
    action: Literal["warn", "stop", "adapt"] = Field(
        "warn",
        description="Tell, stop the run with a checkpoint, or double the KL coefficient each time.",
    )


class RlhfConfig(PromptsConfig):
    """Tasks `ppo`, `grpo` and `rloo`: answer prompts, judge the answers, learn."""

    rewards: Rewards = Field(
        default_factory=list, description="What answers are rewarded for, added up with weights."
    )
    reward_clip: float | None = Field(
        None, gt=0, description="The sum of the rewards is kept between minus this and this."
    )
    normalize_rewards: bool = Field(
        False,
        description="Divide by the standard deviation of all rewards so far, after subtracting their mean.",
    )
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="Answers.")
    kl: KlConfig = Field(default_factory=KlConfig, description="Distance from the reference.")
    policy: PolicyConfig = Field(default_factory=PolicyConfig, description="The actor's loss.")
    critic: CriticConfig = Field(default_factory=CriticConfig, description="The critic.")
    frozen: FrozenConfig = Field(
        default_factory=FrozenConfig, description="Where reference and reward models compute."
    )
    offload_frozen: bool = Field(
        False, description="Reference and reward models rest in the host's memory between their uses."
    )
    alarms: AlarmConfig = Field(default_factory=AlarmConfig, description="Alarms.")
    samples_shown: int = Field(
        4, ge=0, description="Answers written to rollouts.jsonl of each step that is logged."
    )
