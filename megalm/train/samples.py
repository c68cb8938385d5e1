"""Prompts that a model answers while it trains: read, told apart from their answers, and encoded, before the run begins."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalm.config.schema import Config
from megalm.errors import UserError
from megalm.generate.decode import context_length
from megalm.generate.request import GenerationOptions
from megalm.generate.tokenizing import trained_template
from megalm.tokenizer import Tokenizer
from megalm.tokenizer.chat import ChatTemplate
from megalm.train.asked import Messages, content_of, read_json_lines

# the usual names, so that held-out data of instruction tuning serve as they are
_ANSWER_KEYS = ("reference", "references", "completion", "response", "answer")


@dataclass(frozen=True)
class Prompt:
    """Text and ids of what the model goes on from, and texts that would be right."""

    text: str
    ids: list[int]
    references: list[str]


@dataclass
class Prompts:
    """All prompts of a run and how they are continued. notices: what was left out, to be told."""

    prompts: list[Prompt]
    options: GenerationOptions
    notices: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Asked:
    """A prompt as it was given: a text to go on from or messages, its references, and where it stands."""

    content: str | Messages
    references: list[str]
    where: str


def open_prompts(config: Config, tokenizer: Tokenizer) -> Prompts:
    """Read and encode the prompts of `samples`; UserError where one is none, or a measure lacks references.

    In task `sft` a text is what a user says, otherwise what the model goes on from. Prompts that leave no room for
    `max_new_tokens` are left out and counted.
    """
    samples = config.samples
    assert samples.prompts is not None
    asked = [_parse(value, where) for value, where in _given(samples.prompts, samples.max_samples)]
    if not asked:
        raise UserError(f"samples.prompts: there is none in {samples.prompts or 'an empty list'}; name some")
    if missing := next((prompt.where for prompt in asked if not prompt.references), None):
        _refuse_metrics(config, missing)
    is_chat = [config.task == "sft" or not isinstance(prompt.content, str) for prompt in asked]
    template = trained_template(config, tokenizer, config.samples.chat_template) if any(is_chat) else None
    encoded = [
        _encode(prompt, template if chat else None, tokenizer)
        for prompt, chat in zip(asked, is_chat, strict=True)
    ]
    kept, notices = _fitting(config, encoded, [prompt.where for prompt in asked])
    stop = [*samples.stop, *(template.end_of_turn() if template else [])]
    options = GenerationOptions(
        max_new_tokens=samples.max_new_tokens,
        temperature=samples.temperature or 1.0,
        greedy=samples.temperature == 0,
        top_p=samples.top_p,
        stop=stop,
        seed=config.run.seed,
    )
    return Prompts(kept, options, notices)


def _given(prompts: str | list[Any], limit: int) -> Iterator[tuple[Any, str]]:
    """Each value with a name for where it stands."""
    if not isinstance(prompts, str):
        yield from ((value, f"samples.prompts.{number}") for number, value in enumerate(prompts))
        return
    for _, line in zip(range(limit), read_json_lines(Path(prompts), "samples.prompts"), strict=False):
        yield line.value, line.where


def _parse(value: Any, where: str) -> _Asked:
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise UserError(f"{where}: a text or an object is expected, found {type(value).__name__}")
    references = next((value[key] for key in _ANSWER_KEYS if key in value), None)
    references = [references] if isinstance(references, str) else references or []
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise UserError(f"{where}: `reference` is {references!r}; give a text or several")
    content, answer = content_of(value, where)
    if answer is not None:
        references = references or [answer]
    return _Asked(content, references, where)


def _refuse_metrics(config: Config, where: str) -> None:
    if config.samples.metrics:
        raise UserError(
            f"{where} has no `reference`, which samples.metrics {', '.join(config.samples.metrics)} need: give one to each"
        )


def _encode(prompt: _Asked, template: ChatTemplate | None, tokenizer: Tokenizer) -> Prompt:
    content = prompt.content
    if template is None:
        assert isinstance(content, str)
        # an empty prompt asks for a text from its beginning, which follows the end of another in training
        return Prompt(content, tokenizer.encode(content) or [tokenizer.eod_id], prompt.references)
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    try:
        encoded = template.encode(messages, add_generation_prompt=True)
    except UserError as error:
        raise UserError(f"{prompt.where}: {error}") from None
    return Prompt(encoded.text, encoded.ids, prompt.references)


def _fitting(config: Config, prompts: list[Prompt], where: Iterable[str]) -> tuple[list[Prompt], list[str]]:
    """The prompts that the context has room for with their answers, and what to tell of the others."""
    context, answer = context_length(config), config.samples.max_new_tokens
    too_long = [
        place for prompt, place in zip(prompts, where, strict=True) if len(prompt.ids) + answer > context
    ]
    kept = [prompt for prompt in prompts if len(prompt.ids) + answer <= context]
    if not too_long:
        return kept, []
    told = (
        f"{len(too_long)} of {len(prompts)} prompts leave no room for samples.max_new_tokens {answer} in the context of "
        f"{context} tokens (first: {too_long[0]})"
    )
    if not kept:
        raise UserError(f"{told}: lower samples.max_new_tokens or take shorter prompts")
    return kept, [f"{told}: left out"]
