"""The sections of the tasks that learn from preferences: `reward` and `dpo`."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section

TooLong = Literal["drop", "cut_prompt"]


class PreferenceSection(Section):
    """What tasks on preferences share."""

    too_long: TooLong = Field(
        "drop",
        description="What becomes of an answer that is, with its prompt, longer than batch.seq_length: left out (with its pair), "
        "or the prompt loses its start (`cut_prompt`; left out where the answer alone is too long). How many is told.",
    )


class RewardConfig(PreferenceSection):
    """Task `reward`: a number for each answer, from pairs of answers (Bradley-Terry) or from ratings (squared error)."""

    center_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of the squared sum of a pair's rewards in the loss, which keeps their mean at zero; 0.01 is usual.",
    )


class DpoConfig(PreferenceSection):
    """Task `dpo`: learning from preferences without a reward model, by log-probabilities beside those of a reference."""

    loss: Literal["dpo", "ipo", "kto"] = Field(
        "dpo",
        description="`dpo` (arXiv:2305.18290), `ipo` (arXiv:2310.12036, per token), both of pairs; `kto` (arXiv:2402.01306) of "
        "answers that are wanted or not, or of pairs as such.",
    )
    beta: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="How much a departure from the reference costs."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="`dpo`: share of pairs that are taken to be labelled wrongly."
    )
    desirable_weight: float = Field(1.0, gt=0, description="`kto`: weight of wanted answers.")
    undesirable_weight: float = Field(1.0, gt=0, description="`kto`: weight of unwanted answers.")
    reference: str | None = Field(
        None,
        description="Run or checkpoint to compare with; default: run.load, with adapters (lora.rank) the model without them.",
    )
    reference_free: bool = Field(
        False, description="Compare with a reference to which all answers are alike; no model is needed."
    )
    cache: str | None = Field(
        None,
        description="Directory for the reference's log-probabilities, two numbers a pair: computed once before the first step, so "
        "that no reference takes memory while the run learns.",
    )
