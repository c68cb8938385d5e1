"""What a policy file says: which categories there are, how each is recognised, and what is done where it is found."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from megalm.config.section import Section
from megalm.corpus.clean.pii_patterns import Kind

Action = Literal["block", "mask", "flag"]
"""The strongest first."""
Line = Annotated[str, StringConstraints(min_length=1)]
CategoryName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_/-]{0,63}$")]


class RuleSettings(Section):
    """A regular expression."""

    pattern: Line = Field(..., description="What is found; in the syntax of the package `regex`.")
    window: int = Field(
        64,
        ge=1,
        le=1000,
        description="Longest match that is sure to be found, in characters; a stream comes later by one to two times that.",
    )
    ignore_case: bool = Field(True, description="Whether case makes no difference.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        import regex  # a start of the command line should not pay for it

        try:
            regex.compile(pattern)
        except regex.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern


class ScoreSettings(Section):
    """A classifier that `megalm corpus classifier train` made."""

    model: Path = Field(..., description="Its file.")
    label: str | None = Field(
        None, description="The label that is not wanted; of two by default the one looked for."
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Score from which on a text counts as such; by default the one stored in the model.",
    )


class CategorySettings(Section):
    """Something that is not wanted: any of its detectors finds it."""

    input: Action | None = Field(
        None,
        description="What is done with it in what people write: `block`: the model is not asked; `mask`: the model does not see "
        "it; `flag`: it is recorded. Default: nothing.",
    )
    output: Action | None = Field(
        None,
        description="The same in what the model writes; `block`: the text ends before it, and the model is stopped.",
    )
    words: list[Line] = Field(
        default_factory=list, description="Words and phrases; upper case, accents and layout do not matter."
    )
    word_files: list[Path] = Field(
        default_factory=list, description="Files of them, one a line; lines that begin with # are comments."
    )
    rules: list[RuleSettings] = Field(default_factory=list, description="Regular expressions.")
    classifier: ScoreSettings | None = Field(None, description="A trained classifier.")
    pii: list[Kind] = Field(default_factory=list, description="Kinds of personal data.")
    mask: str | None = Field(
        None,
        description="What stands in its place; default: `[removed]`, of personal data its kind: <EMAIL>.",
    )
    refusal: Line | None = Field(
        None, description="What people are told where it is blocked; default: the policy's."
    )

    @model_validator(mode="after")
    def _does_something(self) -> "CategorySettings":
        if not (self.words or self.word_files or self.rules or self.classifier or self.pii):
            raise ValueError("nothing by which it is recognised: give words, rules, a classifier or pii")
        if self.input is None and self.output is None:
            raise ValueError("nothing is done with it: give input, output or both (block, mask, flag)")
        return self


class PolicySettings(Section):
    """A policy."""

    name: Line = Field("policy", description="What answers of /v1/moderations call it.")
    disguised: bool = Field(
        True,
        description="Whether words are found in disguise, too: digits and signs as letters, look-alikes.",
    )
    keep_text: bool = Field(
        False, description="Whether the audit log holds the texts themselves, not their hashes alone."
    )
    refusal: Line = Field(
        "I'm sorry, I can't help with that.", description="What people are told where something is blocked."
    )
    categories: dict[CategoryName, CategorySettings] = Field(
        ..., min_length=1, description="By name; OpenAI's own names fill its fields of answers."
    )
