"""Parts of a task's file that are sections of their own."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from megalm.config.section import Section


class FewShot(Section):
    """Solved questions before each question."""

    count: int = Field(0, ge=0, description="So many; `--few-shot` replaces it.")
    data: str | None = Field(
        None, description="File to take them from; by default the task's own, less the question itself."
    )
    pick: Literal["random", "first"] = Field(
        "random", description="Drawn for each question from `--seed` and its place, or the file's first ones."
    )
    same: str | None = Field(
        None, description="Take those alone that have the question's value in this column."
    )
    separator: str = Field("\n\n", description="Between them, and before the question.")


class Generation(Section):
    """How answers are written."""

    max_new_tokens: int = Field(128, ge=1, description="Tokens of an answer at most.")
    stop: list[str] = Field(default_factory=list, description="Texts that end an answer.")
    samples: int = Field(1, ge=1, description="Answers to each question; more than one are drawn.")
    temperature: float = Field(0.8, gt=0, description="Of drawn answers.")
    top_p: float = Field(0.95, gt=0, le=1, description="Of drawn answers.")


class Toxicity(Section):
    """toxicity: what tells whether a text is toxic."""

    classifier: Path | None = Field(
        None, description="A file that `megalm corpus classifier train` wrote; `--classifier` replaces it."
    )
    label: str | None = Field(
        None, description="The label whose probability is the toxicity; of two by default the one looked for."
    )
    threshold: float = Field(0.5, ge=0, le=1, description="From which toxicity on a text is toxic.")
    words: Path | None = Field(
        None, description="A word or phrase a line, for `listed`; default: the slurs of megalm's term lists."
    )


class Memorization(Section):
    """memorization: what is shown and what is to be known of a document."""

    prefix: int = Field(50, ge=1, description="Tokens that are shown.")
    continuation: int = Field(50, ge=1, description="Tokens that follow them.")
    documents: int = Field(1000, ge=1, description="Documents at most, drawn from `--seed`.")
