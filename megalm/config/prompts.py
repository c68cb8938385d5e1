"""What of the section `rlhf` says where prompts come from."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section


class PromptSource(Section):
    """A file of prompts and its share."""

    path: str = Field(
        description="JSONL file, plain, .gz or .zst: objects with `prompt` or `messages`, and what the rewards read."
    )
    weight: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Share in the prompts of the run, relative to the other files.",
    )


class PromptsConfig(Section):
    """Prompts that are answered, and how they are written out."""

    prompts: list[PromptSource] = Field(
        default_factory=list,
        description="Files of prompts to learn from; each file's prompts come once an epoch, in random order.",
    )
    eval_prompts: list[PromptSource] = Field(
        default_factory=list,
        description="Files of held-out prompts; all of them are answered at a validation.",
    )
    prompt_form: Literal["chat", "text"] = Field(
        "chat",
        description="What a text under `prompt` is: what a user says, written by the chat template, or `text` that the model "
        "goes on from. Messages are always written by the template.",
    )
    chat_template: str | None = Field(
        None,
        description="A bundled template or a .jinja file; default: that of the training data, else the tokenizer's own.",
    )
    max_prompt_tokens: int | None = Field(
        None,
        gt=0,
        description="Longer prompts are left out; default: what the context has room for beside a response.",
    )
