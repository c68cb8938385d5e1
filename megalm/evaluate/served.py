"""Answers of a model that somebody serves behind OpenAI's API: `megalm serve`, vLLM and others that tell prompts' log-probabilities."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from megalm.errors import UserError
from megalm.evaluate.encode import Ids, Likelihood, Pair
from megalm.evaluate.model import Found
from megalm.generate.request import GenerationOptions

KEYS = ("MEGALM_API_KEY", "OPENAI_API_KEY")
"""Environment variables that hold the key, the first one that is set."""
CONNECTIONS = 4
PROMPTS_AT_ONCE = 16
"""Of one request for likelihoods; each is an answer of some kilobytes a token."""
PATIENCE = 300.0
"""Seconds in which a server that is busy or away may come back."""
LONGEST_PAUSE = 20.0
_BUSY = (408, 429, 502, 503, 504)

Json = dict[str, Any]


class ServedModel:
    """A `Source`. Prompts travel as token ids, so that the tokenizer on this side has to be the model's own."""

    rank = 0

    def __init__(self, address: str, name: str | None, length: int | None) -> None:
        """address: `http://host:port/v1`. name: of the model, needed where there are several. length: of the context, where it is not told.

        UserError where the server cannot be asked, or has no such model.
        """
        self.address = address.rstrip("/")
        self._key = next((os.environ[key] for key in KEYS if os.environ.get(key)), None)
        self.told = self._choose(self._ask("GET", "/models", None)["data"], name)
        self.name: str = self.told["id"]
        found = length or self.told.get("context_length") or self.told.get("max_model_len")
        if found is None:
            raise UserError(
                f"{self.address} does not tell the length of {self.name}'s context: give it with --window"
            )
        # one token beyond its context can be predicted, which other servers do not take
        self.length = int(found) - (self.told.get("owned_by") != "megalm")
        self.texts_at_once = CONNECTIONS * PROMPTS_AT_ONCE

    def _choose(self, models: Sequence[Json], name: str | None) -> Json:
        names = [model["id"] for model in models]
        if name is None and len(models) != 1:
            raise UserError(f"{self.address} serves {', '.join(names) or 'nothing'}: choose one with --model")
        if name is not None and name not in names:
            raise UserError(
                f"{self.address} has no model {name!r} (it has {', '.join(names)}); check --model"
            )
        return next(model for model in models if name in (None, model["id"]))

    @property
    def fingerprint(self) -> str:
        """What tells this model's answers from another's: what the server says of it."""
        told = {key: value for key, value in self.told.items() if key != "created"}
        if "fingerprint" in told:  # that of its weights, wherever they are served
            told = {"fingerprint": told["fingerprint"]}
        else:
            told |= {"address": self.address, "created": self.told.get("created")}
        return "served " + json.dumps(told, sort_keys=True)

    def likelihoods(self, pairs: Sequence[Pair], found: Callable[[Found], None]) -> None:
        """See `Source`."""
        order = sorted(range(len(pairs)), key=lambda number: -sum(map(len, pairs[number])))
        parts = [order[start : start + PROMPTS_AT_ONCE] for start in range(0, len(order), PROMPTS_AT_ONCE)]

        def ask(part: list[int]) -> Found:
            prompts = [(pairs[number].context + pairs[number].continuation) for number in part]
            cut = [list(prompt[-(self.length + 1) :]) for prompt in prompts]
            settings = {"max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
            choices = self._complete(cut, settings)
            return [
                (number, _likelihood(choice, min(len(pairs[number].continuation), len(ids) - 1)))
                for number, ids, choice in zip(part, cut, choices, strict=True)
            ]

        with ThreadPoolExecutor(CONNECTIONS) as threads:
            futures = [threads.submit(ask, part) for part in parts]
            try:
                for future in as_completed(futures):
                    found(future.result())
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def texts(
        self, prompts: Sequence[Ids], options: GenerationOptions, numbers: Sequence[int]
    ) -> list[list[str]]:
        """See `Source`; numbers are part of each request's seed."""

        def ask(place: int) -> list[str]:
            prompt = prompts[place]
            settings: Json = {
                "max_tokens": min(options.max_new_tokens, self.length - len(prompt)),
                "n": options.n,
                "stop": options.stop or None,
                "temperature": 0 if options.greedy else options.temperature,
                "top_p": 1 if options.greedy else options.top_p,
                "seed": options.seed + numbers[place],
            }
            return [choice["text"] for choice in self._complete([list(prompt)], settings)]

        with ThreadPoolExecutor(CONNECTIONS * PROMPTS_AT_ONCE) as threads:
            return list(threads.map(ask, range(len(prompts))))

    def _complete(self, prompts: Sequence[Sequence[int]], settings: Json) -> list[Json]:
        answer = self._ask("POST", "/completions", {"model": self.name, "prompt": prompts} | settings)
        choices: list[Json] = sorted(answer["choices"], key=lambda choice: choice["index"])
        return choices

    def _ask(self, method: str, path: str, body: Json | None) -> Json:
        """Ask, again where the server is busy. UserError where it does not come back, or does not take the request."""
        end, pause = time.monotonic() + PATIENCE, 1.0
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        while True:
            try:
                request = urllib.request.Request(
                    self.address + path, data=data, headers=headers, method=method
                )
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    told: Json = json.loads(answer.read())
                    return told
            except urllib.error.HTTPError as error:
                reason, after = _reason(error), error.headers.get("Retry-After", "")
                if error.code not in _BUSY or time.monotonic() > end:
                    raise UserError(f"{self.address}{path}: {reason}") from None
                if after.isdigit():
                    pause = float(after)
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                if isinstance(error, ValueError) or path == "/models" or time.monotonic() > end:
                    raise UserError(
                        f"{self.address}{path} cannot be asked ({reason}); check the address"
                    ) from None
            time.sleep(min(pause, LONGEST_PAUSE))
            pause = min(2 * pause, LONGEST_PAUSE)


def _likelihood(choice: Json, tokens: int) -> Likelihood:
    """Of the last `tokens` ones of an echoed prompt."""
    told = (choice.get("logprobs") or {}).get("token_logprobs") or []
    best = (choice.get("logprobs") or {}).get("top_logprobs") or []
    values, tops = told[-tokens:], best[-tokens:]
    if len(values) < tokens or len(tops) < tokens or None in values or None in tops:
        raise UserError(
            "the server does not tell the log-probabilities of prompts (echo with logprobs): tasks that ask for likelihoods need them"
        )
    is_greedy = all(value >= max(top.values()) for value, top in zip(values, tops, strict=True))
    return Likelihood(float(sum(values)), is_greedy)


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
