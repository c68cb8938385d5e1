"""Requests on their way through the engine, and the sequences that each is continued as."""

from dataclasses import dataclass, field

from megalm.generate.beams import Beam, BeamSearch
from megalm.generate.request import GenerationOptions
from megalm.generate.sampling import TokenCounts
from megalm.generate.text import GrowingText, add_token


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with.

    tokens: all that were generated, with the token that ended the text. text: without it and cut before a stop string;
    empty where the generator has no tokenizer. finish_reason: `stop` (end of document or stop string), `length` or
    `cancelled`. logprobs: of each token, as far as asked for. top_logprobs: at each place the likeliest tokens. score: of a
    text that beam search found. prompt: the prompt's tokens but the first, where their log-probabilities were asked for.
    """

    tokens: list[int]
    text: str
    finish_reason: str
    logprobs: list[float] | None = None
    top_logprobs: list[dict[int, float]] | None = None
    score: float | None = None
    prompt: "list[Token] | None" = None


@dataclass(frozen=True)
class Event:
    """What a step brought: a piece of a text, at its end the whole of it. sample: which of the request's `n` texts it is of.

    tokens: of this text so far. cut: the stop string that the text was cut before, if it was, which `text` does not have. token: where log-probabilities were asked for, what was added to the text, though none of it may be settled yet. prompt: where those
    of the prompt were asked for, its tokens but the first, once it has been read; of the first sample alone.
    """

    request: int
    sample: int
    text: str
    completion: Completion | None = None
    token: "Token | None" = None
    prompt: "list[Token] | None" = None
    tokens: int = 0
    cut: str = ""


@dataclass(frozen=True)
class Token:
    """A token with its log-probability, and the likeliest ones in its place with theirs."""

    id: int
    logprob: float
    top: dict[int, float]


@dataclass
class Request:
    """A prompt that is being continued. sequence: a name that tells its draws from those of other prompts.

    told: the prompt's tokens but the first with their log-probabilities, as far as it has been read and they were asked for.
    """

    number: int
    prompt: list[int]
    options: GenerationOptions
    sequence: str
    limit: int
    search: BeamSearch | None = None
    told: list[Token] = field(default_factory=list)

    @property
    def is_read_only(self) -> bool:
        """Whether nothing is written: the prompt's last token is then only predicted."""
        return self.options.max_new_tokens == 0


@dataclass
class Row:
    """One of a request's sequences. cached: how many of `tokens` have their keys and values in the row's slot."""

    request: Request
    sample: int
    tokens: list[int]
    text: GrowingText | None
    cached: int = 0
    counts: TokenCounts | None = field(default=None, repr=False)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def is_growing(self) -> bool:
        """Whether all but its last token has been read."""
        return self.cached == len(self.tokens) - 1 >= len(self.request.prompt)

    @property
    def steps(self) -> int:
        """Tokens generated."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def name(self) -> str:
        """Tells its draws from those of all others."""
        return f"{self.request.sequence}.{self.sample}" if self.sample else self.request.sequence

    def add(self, token: int, eod_id: int | None) -> str:
        """Append a token, see whether the row ends with it, and return the text that it settles."""
        self.tokens.append(token)
        is_last = len(self.tokens) == self.request.limit
        piece, self.finish_reason = add_token(self.text, token, eod_id, is_last)
        return piece

    def completion(self) -> Completion:
        """The text as it stands."""
        wanted = self.request.options.logprobs
        return Completion(
            self.tokens[len(self.request.prompt) :],
            "" if self.text is None else self.text.text,
            self.finish_reason or "cancelled",
            None if wanted is None else self.logprobs,
            self.top_logprobs if wanted else None,
            prompt=None if self.request.options.prompt_logprobs is None else self.request.told,
        )


def beam_completion(beam: Beam) -> Completion:
    """The text of a beam that has ended."""
    assert beam.finish_reason is not None
    text = "" if beam.text is None else beam.text.text
    return Completion(beam.tokens, text, beam.finish_reason, score=beam.score)
