"""The section `samples`: answers that the model writes to given prompts at validations of its training."""

from typing import Any, Literal

from pydantic import Field

from megalm.config.section import Section

Metric = Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "f1", "exact_match", "bleu", "chrf"]


class SamplesConfig(Section):
    """Answers generated at validations, written to RUN_DIR/samples.jsonl and measured against references."""

    prompts: str | list[Any] | None = Field(
        None,
        description="JSONL file, or a list, of prompts: a text, or an object with `prompt` (or `question`) or `messages`, and "
        "perhaps `reference` (or `completion`, `response`, `answer`): a text or several. Messages that end with the "
        "assistant's have that as the reference, and so have records of Alpaca's and ShareGPT's shape.",
    )
    max_samples: int = Field(64, gt=0, description="The first so many prompts of a file are used.")
    every: int = Field(
        1, gt=0, description="Generate at every so-many-th validation, and at that of the last step."
    )
    max_new_tokens: int = Field(128, gt=0, description="Tokens of an answer at most.")
    temperature: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Divides the logits before sampling; 0 takes the likeliest token.",
    )
    top_p: float = Field(
        1.0, gt=0, le=1, description="Sample among the likeliest tokens of this total probability."
    )
    stop: list[str] = Field(
        default_factory=list,
        description="An answer ends before any of these texts; the end of a turn of the chat template is known.",
    )
    chat_template: str | None = Field(
        None,
        description="For messages: a bundled template or a .jinja file; default: that of the training data, else the "
        "tokenizer's own.",
    )
    metrics: list[Metric] = Field(
        default_factory=list,
        description="Measures of the answers against the references, in the validation's figures under these names: ROUGE, "
        "F1 and exact match from 0 to 1, BLEU and chrF from 0 to 100.",
    )
    batch_size: int = Field(16, gt=0, description="Prompts that a copy of the model answers together.")
    show: int = Field(1, ge=0, description="So many answers are shown on the terminal.")
