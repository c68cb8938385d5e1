"""What every kind of tokenizer that can be trained is made of."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from megalm.errors import UserError
from megalm.tokenizer.training.counting import Cut, WordCounts
from megalm.tokenizer.training.merges import Ties

EOD_TOKEN = "<|endoftext|>"
BYTES = 256


@dataclass(frozen=True)
class Settings:
    """What is to be trained, checked and complete."""

    kind: str
    vocab_size: int | None
    """Tokens, special ones included; None: all that occur."""
    special_tokens: tuple[str, ...]
    """In the order of their ids, which begin at 0."""
    pretokenizer: str | None
    normalizers: tuple[str, ...]
    min_count: int = 1
    ties: Ties = "ids"
    character_coverage: float = 0.9995
    byte_fallback: bool = True

    def given_options(self) -> list[str]:
        """Names of the settings, of those that not every kind has, that are not as by default."""
        return [f.name for f in fields(self) if f.default not in (MISSING, getattr(self, f.name))]

    def room(self, what: str, tokens: int) -> int:
        """How many tokens fit beside `tokens` that must be there (`what` they are); UserError where they do not fit."""
        needed = len(self.special_tokens) + tokens
        if self.vocab_size is None or self.vocab_size < needed:
            raise UserError(
                f"vocab_size is {self.vocab_size}, but {what} and {len(self.special_tokens)} special tokens need at "
                f"least {needed}; raise vocab_size"
            )
        return self.vocab_size - needed


@dataclass(frozen=True)
class Training:
    """What training has to work with."""

    settings: Settings
    counts: WordCounts
    folder: Path
    """For temporary files."""
    progress: bool


Files = dict[str, bytes]
"""Contents of a tokenizer's files by their names."""


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer."""

    cut: Callable[[Settings], Cut]
    """What cuts texts into the words to count."""
    fit: Callable[[Training], Files]
    """Makes the tokenizer of the words' counts."""
    check: Callable[[Settings], object] = lambda settings: None
    """Raises UserError for settings that cannot work, before anything is read."""
    pretokenizers: Sequence[str | None] = (None,)
    """Names to choose from; the first is the default."""
    normalizers: Sequence[str] = ()
    """Names to choose from."""
    default_normalizers: tuple[str, ...] = ()
    options: Sequence[str] = ("min_count",)
    """Of the settings that not every kind has, those that play a part."""
    special_tokens: tuple[str, ...] = (EOD_TOKEN,)
    """Those that come first."""
    eod_token: str = EOD_TOKEN
    needs_text: bool = True
    needs_size: bool = True
    """Whether a vocabulary size must be given."""


def check_apart(special_tokens: Sequence[str], is_ordinary: Callable[[str], bool]) -> None:
    """Raise UserError for a special token whose spelling a text can give an ordinary token."""
    for token in special_tokens:
        if is_ordinary(token):
            raise UserError(
                f"special token '{token}' is spelled as an ordinary token may be; choose another spelling, such as "
                f"<|{token}|>"
            )
