"""The sections of classification: `model.sequence_head`, numbers for each sample, and `classify`, the task that trains it."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section


class SequenceHeadConfig(Section):
    """A head with some numbers for each sample in the place of the one with a number for each token of the vocabulary."""

    outputs: int = Field(
        0,
        ge=0,
        description="Numbers for each sample; task `classify` takes the number of labels where this is 0. 0: no such head.",
    )
    pooling: Literal["auto", "last", "mean", "first"] = Field(
        "auto",
        description="The hidden state that the head sees: the `last` token's, the `mean` over tokens or the `first` ([CLS]) one's; "
        "`auto`: `last` for `gpt`, `first` for `bert`.",
    )
    transform: bool | None = Field(
        None,
        description="A dense layer and tanh before the outputs, as BERT pools [CLS]; default: for `bert` with pooling `first`.",
    )


class ClassifyConfig(Section):
    """Task `classify`: labels of whole texts, or of pairs of texts."""

    labels: list[str] = Field(
        default_factory=list,
        description="Names of the classes, in the order of the head's outputs; default: those of the training data.",
    )
    keep: Literal["start", "end", "both"] = Field(
        "start",
        description="What is kept of a text longer than batch.seq_length: its `start`, its `end`, or half of each (`both`).",
    )
    class_weights: Literal["balanced"] | dict[str, float] = Field(
        default_factory=dict,
        description="Weight of each class in the loss, 1 where none is given; `balanced`: samples / (classes x samples of the "
        "class), by the training data.",
    )
