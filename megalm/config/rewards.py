"""The list `rlhf.rewards`: what answers are rewarded for, each kind by its name."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from megalm.config.section import Section


class _Reward(Section):
    """What all kinds of reward have in common."""

    weight: float = Field(
        1.0,
        allow_inf_nan=False,
        description="Factor of this reward in the sum; 0: measured and reported alone.",
    )
    label: str | None = Field(
        None, min_length=1, description="Name under which its mean is reported; default: `name`."
    )

    @property
    def title(self) -> str:
        """Name under which its mean is reported."""
        return self.label or str(getattr(self, "name"))  # noqa: B009  each kind has its own


def _check_pattern(pattern: str | None) -> str | None:
    if pattern is not None:
        import regex  # a start of the command line should not pay for it

        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"no regular expression: {error}") from None
    return pattern


class ExactAnswerConfig(_Reward):
    """1 where the answer that the response comes to is the prompt's, else 0."""

    name: Literal["exact_answer"] = Field(
        "exact_answer", description="`exact_answer`: is it the right answer?"
    )
    key: str = Field(
        "answer",
        description="Key of the prompt's record that holds the right answer: a text or a number, or a list, any of which "
        "will do.",
    )
    extract: Literal["last_number", "hashes", "boxed", "pattern", "whole"] = Field(
        "last_number",
        description="Where the answer stands: `last_number` of the response, behind the last #### (`hashes`), in the last "
        "\\boxed{}, where `pattern` matches last, or the `whole` response.",
    )
    pattern: str | None = Field(
        None,
        description="With extract `pattern`: a regular expression; its first group is the answer, or all that it matches.",
    )
    extract_reference: bool = Field(
        False,
        description="The record holds a worked solution: extract its answer, too (an answer alone is taken as it is).",
    )

    _pattern = field_validator("pattern")(_check_pattern)

    @model_validator(mode="after")
    def _complete(self) -> "ExactAnswerConfig":
        if (self.extract == "pattern") != (self.pattern is not None):
            raise ValueError("extract `pattern` and a `pattern` belong together: give both or none")
        return self


class FormatConfig(_Reward):
    """1 where the response has a form, else 0."""

    name: Literal["format"] = Field("format", description="`format`: does the response have a form?")
    pattern: str = Field(
        description="Regular expression of the package `regex`; `(?s)` at its begin lets the dot match ends of lines."
    )
    full_match: bool = Field(
        True, description="The whole response must match; else it is enough that a part does."
    )

    _pattern = field_validator("pattern")(_check_pattern)


class LengthConfig(_Reward):
    """0 up to a number of tokens, below 0 beyond it."""

    name: Literal["length"] = Field("length", description="`length`: is the response too long?")
    target: int = Field(gt=0, description="Tokens of a response that cost nothing.")
    limit: int | None = Field(
        None,
        gt=0,
        description="Tokens at which the reward has fallen to -1, and stays there: DAPO's soft punishment of overlong "
        "responses, L_max, with `target` = L_max - L_cache (arXiv:2503.14476). Default: it falls for ever, "
        "-(tokens - target) / target.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "LengthConfig":
        if self.limit is not None and self.limit <= self.target:
            raise ValueError(f"limit {self.limit} must be more than target {self.target}")
        return self


class StopConfig(_Reward):
    """What a response gets for ending by itself, and for being cut off."""

    name: Literal["stop"] = Field("stop", description="`stop`: did the response end by itself?")
    bonus: float = Field(0.0, allow_inf_nan=False, description="Of a response that ended by itself.")
    penalty: float = Field(
        -1.0, allow_inf_nan=False, description="Of one that was cut off at the most tokens."
    )


class ClassifierConfig(_Reward):
    """The probability that a small classifier gives to a label."""

    name: Literal["classifier"] = Field(
        "classifier", description="`classifier`: what does a text classifier say of it?"
    )
    path: str = Field(description="File that `megalm corpus classifier train` wrote.")
    class_label: str | None = Field(
        None, description="Which of its labels; default: of two the one looked for, its second."
    )
    with_prompt: bool = Field(False, description="Judge prompt and response as one text.")


class UnitTestsConfig(_Reward):
    """The share of the prompt's tests that the response's Python code passes, run in a sandboxed process."""

    name: Literal["unit_tests"] = Field(
        "unit_tests", description="`unit_tests`: does the code pass the prompt's tests?"
    )
    key: str = Field(
        "tests",
        description="Key of the prompt's record that holds the tests: Python code, or a list, each of which passes where it "
        "raises nothing.",
    )
    all_or_nothing: bool = Field(False, description="1 where all tests pass, else 0.")
    seconds: float = Field(
        10.0,
        gt=0,
        allow_inf_nan=False,
        description="Time for all tests of a response; what is not done failed.",
    )
    memory_mb: int = Field(512, ge=64, description="Address space of a test's process, MiB.")
    workers: int = Field(2, gt=0, description="Responses tested at a time on each rank.")


class ModelRewardConfig(_Reward):
    """What a reward model says of prompt and response."""

    name: Literal["model"] = Field("model", description="`model`: a trained reward model's score.")
    checkpoint: str = Field(description="Run or checkpoint of task `reward`.")
    mean: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Subtracted from the score; default: the mean at the model's last validation, 0 where there was none.",
    )
    std: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Divides the score, after `mean` is subtracted; default: the deviation at that validation, else 1.",
    )


RewardConfig = Annotated[
    ExactAnswerConfig
    | FormatConfig
    | LengthConfig
    | StopConfig
    | ClassifierConfig
    | UnitTestsConfig
    | ModelRewardConfig,
    Field(discriminator="name"),
]


def _distinct(rewards: list[RewardConfig]) -> list[RewardConfig]:
    titles = [reward.title for reward in rewards]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise ValueError(f"`{twice}` stands twice: give each a `label` of its own")
    return rewards


Rewards = Annotated[list[RewardConfig], AfterValidator(_distinct)]
"""The field's type: rewards that are told apart by their titles."""
