"""From what a request asks for to how the model writes."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megalm.errors import UserError
from megalm.generate.request import GenerationOptions
from megalm.serve.api.errors import ApiError
from megalm.serve.api.schema import SamplingBody
from megalm.serve.pool import ServedModel
from megalm.serve.screen import OutputScreen
from megalm.serve.settings import LimitSettings

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's, of completions that name no number."""


@dataclass(frozen=True)
class Asked:
    """What goes to the model. options: of `GenerationOptions`. screen: what comes of it passes through it, if there is one."""

    prompts: list[list[int]]
    options: dict[str, Any]
    screen: OutputScreen | None = None

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def texts(self) -> int:
        """That will be written."""
        return len(self.prompts) * int(self.options["n"])

    @property
    def length(self) -> int:
        """Tokens that the longest text has room for, its prompt among them."""
        return max(map(len, self.prompts)) + int(self.options["max_new_tokens"])


def asked_of(
    body: SamplingBody,
    model: ServedModel,
    prompts: list[list[int]],
    limits: LimitSettings,
    max_tokens: int | None,
    logprobs: int | None,
    stops: Sequence[str] = (),
    prompt_logprobs: int | None = None,
) -> Asked:
    """Check `prompts` (token ids) and the settings of `body` against the model and the limits. Raises ApiError.

    max_tokens: None: what the context has room for. logprobs, prompt_logprobs: as in `GenerationOptions`. stops: beside those of the body.
    """
    room = _room(
        model, prompts, 1 if max_tokens != 0 else -1
    )  # a last token that is only predicted needs none
    if max_tokens is not None and max_tokens > max(room, 0):
        longest = max(map(len, prompts))
        raise ApiError(
            400,
            f"{longest} tokens of the prompt and {max_tokens} more are beyond the model's context of {model.context_length}: "
            "shorten the prompt, or lower max_tokens",
            "max_tokens",
            "context_length_exceeded",
        )
    options: dict[str, Any] = {
        "max_new_tokens": _most(model, prompts, body.answers, room) if max_tokens is None else max_tokens,
        "n": body.answers,
        "top_k": body.top_k,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": _bias(body.logit_bias, model),
        "stop": [*_stops(body.stop, limits), *stops],
        "seed": secrets.randbits(48) if body.seed is None else body.seed,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    }
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    if temperature < 1e-6 or top_p == 0:
        options["greedy"] = True
    else:
        options |= {"temperature": temperature, "top_p": top_p}
    try:
        GenerationOptions(**options | {"logit_bias": {int(k): v for k, v in options["logit_bias"].items()}})
    except UserError as error:
        raise ApiError(400, str(error)) from None
    asked = Asked(prompts, options)
    if model.cache_tokens is not None and body.answers * asked.length > model.cache_tokens:
        raise ApiError(
            400,
            f"{body.answers} x {asked.length} tokens of prompt and answer are more than the {model.cache_tokens} that there is memory "
            "for: lower max_tokens or n",
            "max_tokens",
        )
    if asked.texts > limits.max_texts:
        raise ApiError(400, f"{asked.texts} texts: at most {limits.max_texts} in a request", "n")
    if body.answers > model.settings.max_rows:
        raise ApiError(
            400, f"n is {body.answers}: at most {model.settings.max_rows} texts are written side by side", "n"
        )
    return asked


def _room(model: ServedModel, prompts: Sequence[list[int]], least: int) -> int:
    """Tokens that each prompt leaves in the context. Raises ApiError where one leaves less than `least`."""
    size = model.tokenizer.vocab_size
    for prompt in prompts:
        if not prompt:
            raise ApiError(400, "a prompt of no token cannot be continued", "prompt")
        if wrong := next((token for token in prompt if token >= size), None):
            raise ApiError(400, f"the token {wrong} is none of the model's {size}", "prompt")
    room = model.context_length - max(map(len, prompts))
    if room < least:
        raise ApiError(
            400,
            f"the prompt has {max(map(len, prompts))} tokens, and with the model's context of {model.context_length} it may have "
            f"{model.context_length - least}: shorten it",
            "prompt",
            "context_length_exceeded",
        )
    return room


def _most(model: ServedModel, prompts: Sequence[list[int]], answers: int, room: int) -> int:
    """Tokens that may be written where nobody says how many: what there is room and memory for."""
    if model.cache_tokens is None:
        return room
    return max(1, min(room, model.cache_tokens // answers - max(map(len, prompts))))


def _bias(given: dict[str, float] | None, model: ServedModel) -> dict[str, float]:
    size = model.tokenizer.vocab_size
    for token in given or {}:
        if not (token.isascii() and token.isdigit()) or len(token) > 9 or int(token) >= size:
            raise ApiError(400, f"logit_bias: {token[:20]!r} is no token id (0 to {size - 1})", "logit_bias")
    return given or {}


def _stops(given: str | list[str] | None, limits: LimitSettings) -> list[str]:
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > limits.max_stops:
        raise ApiError(400, f"{len(stops)} stop strings: at most {limits.max_stops}", "stop")
    if any(len(stop) > limits.max_stop_length for stop in stops):
        raise ApiError(400, f"a stop string has at most {limits.max_stop_length} characters", "stop")
    return stops
