"""A copy of a model that vLLM runs, asked as `generate.decode.Generator` is asked; written against vLLM 0.33."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megalm.errors import UserError
from megalm.generate.request import GenerationOptions
from megalm.generate.rows import Completion, Event, Token
from megalm.generate.text import GrowingText, add_token
from megalm.serve.settings import WorldSettings
from megalm.tokenizer import Tokenizer

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass
class _Text:
    """One of a request's texts."""

    text: GrowingText
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    reason: str | None = None


@dataclass
class _Open:
    prompt: list[int]
    options: GenerationOptions
    texts: list[_Text]


class VllmGenerator:
    """vLLM's engine over an exported model. Stop strings, texts and their pieces are made here, from tokens, as for our own engine."""

    def __init__(
        self, model: Path, settings: WorldSettings, context_length: int, tokenizer: Tokenizer
    ) -> None:
        """model: in Hugging Face's form. UserError where vLLM is not installed, or does not take it."""
        vllm = _import()
        if settings.dtype not in _DTYPES:
            raise UserError(f"--backend vllm has no dtype {settings.dtype}: choose fp32 or bf16")
        try:
            self._engine = vllm.LLMEngine.from_engine_args(
                vllm.EngineArgs(
                    model=str(model),
                    skip_tokenizer_init=True,
                    dtype=_DTYPES[settings.dtype],
                    tensor_parallel_size=settings.tensor_model_parallel_size,
                    pipeline_parallel_size=settings.pipeline_model_parallel_size,
                    max_model_len=context_length,
                    max_num_seqs=settings.max_rows,
                    enable_prefix_caching=settings.prefix_share > 0,
                )
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"vLLM does not take {model}: {' '.join(str(error).split())[:300]}") from None
        self._parameters = vllm.SamplingParams
        self._kind = vllm.sampling_params.RequestOutputKind.DELTA
        self.context_length, self.tokenizer = context_length, tokenizer
        self._open: dict[int, _Open] = {}
        self._count = 0

    @property
    def busy(self) -> bool:
        """Whether a request is open."""
        return bool(self._open)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Nothing has to be made ready."""
        yield

    def submit(self, prompt: Sequence[int], options: GenerationOptions, sequence: int = 0) -> int:
        """Hand in a prompt (token ids); its number. Raises UserError where vLLM does not take it."""
        self._count += 1
        fields = parameters_of(options, self.tokenizer.eod_id)
        fields["seed"] += sequence
        try:
            parameters = self._parameters(**fields, output_kind=self._kind, detokenize=False)
            self._engine.add_request(str(self._count), {"prompt_token_ids": list(prompt)}, parameters)
        except ValueError as error:
            raise UserError(" ".join(str(error).split())[:300]) from None
        first = GrowingText(self.tokenizer, prompt, options.stop)
        texts = [_Text(first.copy()) for _ in range(options.n)]
        self._open[self._count] = _Open(list(prompt), options, texts)
        return self._count

    def cancel(self, *numbers: int) -> None:
        """Forget requests; nothing more comes of them."""
        gone = [number for number in numbers if self._open.pop(number, None) is not None]
        self._engine.abort_request([str(number) for number in gone])

    def step(self) -> list[Event]:
        """What the next step of the engine brings."""
        events: list[Event] = []
        for output in self._engine.step():
            number = int(output.request_id)
            one = self._open.get(number)
            if one is None:
                continue
            if output.prompt_logprobs and one.options.prompt_logprobs is not None:
                events.append(self._told(number, one, output.prompt_logprobs))
            for part in output.outputs:
                events += self._grow(number, one, part)
            if all(text.reason for text in one.texts):
                del self._open[number]
                if not output.finished:
                    self._engine.abort_request([str(number)])
        return events

    def _told(self, number: int, one: _Open, found: Sequence[Any]) -> Event:
        """The prompt's tokens but the first, which nothing predicts."""
        count = one.options.prompt_logprobs or 0
        tokens = [
            Token(token, *_told_of(token, at, count))
            for token, at in zip(one.prompt[1:], found[1:], strict=True)
        ]
        return Event(number, 0, "", prompt=tokens)

    def _grow(self, number: int, one: _Open, part: Any) -> Iterator[Event]:
        """Add what came to the text number `part.index`, up to where it ends."""
        text, options = one.texts[part.index], one.options
        if text.reason:  # it has ended at a stop string, the others go on
            return
        if (
            not options.max_new_tokens
        ):  # vLLM has to write one token even where only the prompt is asked about
            text.reason = "length"
            yield Event(number, part.index, "", Completion([], "", "length"))
            return
        last = part.finish_reason is not None
        for place, token in enumerate(part.token_ids):
            is_last = last and place == len(part.token_ids) - 1
            text.tokens.append(token)
            piece, text.reason = add_token(text.text, token, self.tokenizer.eod_id, is_last)
            told = None
            if options.logprobs is not None:
                logprob, top = _told_of(token, part.logprobs[place], options.logprobs)
                text.logprobs.append(logprob)
                text.top.append(top)
                told = Token(token, logprob, top)
            done = self._completion(text) if text.reason else None
            if piece or done or told:
                yield Event(number, part.index, piece, done, told, None, len(text.tokens), text.text.cut)
            if text.reason:
                return
        if last:  # it ended without a token
            text.reason = "length" if part.finish_reason == "length" else "stop"
            piece = text.text.finish()
            yield Event(number, part.index, piece, self._completion(text), tokens=len(text.tokens))

    def _completion(self, text: _Text) -> Completion:
        assert text.reason is not None
        return Completion(text.tokens, text.text.text, text.reason, text.logprobs or None, text.top or None)


def parameters_of(options: GenerationOptions, eod_id: int) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams that say the same; stop strings are watched for by us."""
    return {
        "n": options.n,
        "max_tokens": max(options.max_new_tokens, 1),
        "temperature": 0.0 if options.greedy else options.temperature,
        "top_p": 1.0 if options.greedy else options.top_p,
        "top_k": 0 if options.greedy else options.top_k,
        "min_p": 0.0 if options.greedy else options.min_p,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "repetition_penalty": options.repetition_penalty,
        "logit_bias": dict(options.logit_bias) or None,
        "seed": options.seed,
        "stop_token_ids": [eod_id],
        "logprobs": options.logprobs,
        "prompt_logprobs": options.prompt_logprobs,
    }


def _told_of(token: int, at: Any, count: int) -> tuple[float, dict[int, float]]:
    """The log-probability of a token, and the likeliest ones with theirs; at: of one place, as vLLM tells it."""
    best = sorted(at.items(), key=lambda item: -item[1].logprob)[:count]
    return float(at[token].logprob), {int(one): float(told.logprob) for one, told in best}


def _import() -> Any:
    try:
        import vllm
        import vllm.sampling_params
    except ImportError as error:
        raise UserError(f"--backend vllm needs vLLM ({error}): pip install vllm") from None
    return vllm
