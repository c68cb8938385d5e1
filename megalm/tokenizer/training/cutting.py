"""Cuts texts into the words that training counts, in the way in which the trained tokenizer will cut them."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex
from gigatoken.gigatoken_rs import pretokenizer
from tokenizers import Regex, normalizers, pre_tokenizers

from megalm.errors import UserError
from megalm.tokenizer.unicode13 import is_stable

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"\p{P}$+<=>^`|~"
_GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|"
_GPT2_REST = r"| ?[^\s\p{L}\p{N}]+|%s\s+(?!\S)|\s+"


@dataclass(frozen=True)
class Pretokenizer:
    """A way to cut texts: as a pattern, to count with, and as the part of a `tokenizer.json`."""

    pattern: Callable[[], str]
    backend: Callable[[], pre_tokenizers.PreTokenizer]


def _byte_level(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    return lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRETOKENIZERS = {
    "gpt2": Pretokenizer(
        lambda: _GPT2_WORDS + r" ?\p{N}+" + _GPT2_REST % "",
        lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    ),
    "gpt2-digits": Pretokenizer(
        lambda: _GPT2_WORDS + r"\p{N}" + _GPT2_REST % r"\s+(?=\p{N})|",
        lambda: pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ),
    "gpt4": Pretokenizer(lambda: _GPT4 % "{1,3}", _byte_level(_GPT4 % "{1,3}")),
    "gpt4-digits": Pretokenizer(lambda: _GPT4 % "", _byte_level(_GPT4 % "")),
    "words": Pretokenizer(lambda: rf"[^\s{_PUNCTUATION}]+|[{_PUNCTUATION}]", pre_tokenizers.BertPreTokenizer),
}
"""Ways to cut texts by name.

gpt2: letters, digits, other signs and spaces apart, a space before a word belonging to it (Radford et al. 2019); gpt4:
as cl100k_base of tiktoken and Llama 3, whose numbers are groups of up to three digits; -digits: each digit alone;
words: at spaces, each punctuation mark alone, as BERT.

The pattern and the library's own cut agree on all characters of Unicode 13 but a few punctuation marks.
"""

NORMALIZERS: dict[str, Callable[[], normalizers.Normalizer]] = {
    "nfc": normalizers.NFC,
    "nfd": normalizers.NFD,
    "nfkc": normalizers.NFKC,
    "nfkd": normalizers.NFKD,
    "lowercase": normalizers.Lowercase,
    "strip-accents": lambda: normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]
    ),
    "bert": lambda: normalizers.BertNormalizer(lowercase=True),
    "bert-cased": lambda: normalizers.BertNormalizer(lowercase=False),
}
"""What texts go through before they are cut, by name; bert: control characters out, Chinese characters apart, lowercase
without accents; bert-cased: the same in the case and with the accents that are there."""


@dataclass(frozen=True)
class Cutter:
    """Normalizes a text and cuts it; small, so that it travels to worker processes."""

    pretokenizer: str | None
    """Of `PRETOKENIZERS`; None: every character is a word."""
    normalizers: tuple[str, ...] = ()

    def count(self, texts: Iterable[str]) -> Mapping[bytes, int]:
        """How often each word occurs in `texts`, spelled in UTF-8."""
        spelled: Counter[bytes] = Counter()
        words: Counter[str] = Counter()
        for text in texts:
            if self.normalizers:
                text = normalizer_of(self.normalizers).normalize_str(text)
            if self.pretokenizer is None:
                words.update(text)
            elif not self._knows(text):
                cuts = _backend(self.pretokenizer).pre_tokenize_str(text)
                words.update(text[begin:end] for _, (begin, end) in cuts)
            elif self.pretokenizer == "gpt2":
                spelled.update(pretokenizer(text.encode()))
            else:
                words.update(_pattern(self.pretokenizer).findall(text))
        for word, count in words.items():
            spelled[word.encode()] += count
        return spelled

    def _knows(self, text: str) -> bool:
        """Whether the pattern cuts `text` as the library does."""
        if text.isascii():
            return True
        return is_stable(text) and (self.pretokenizer != "words" or _disputed_marks().isdisjoint(text))


@lru_cache(maxsize=1)
def _disputed_marks() -> frozenset[str]:
    """Signs that are punctuation for the pattern or the library, whose table is older, and not for the other."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x20000)]))
    signs = regex.findall(r"[\p{P}\p{S}]", everything)
    framed = " ".join(f"a{sign}a" for sign in signs)
    cuts = PRETOKENIZERS["words"].backend().pre_tokenize_str(framed)
    theirs = {framed[begin:end] for _, (begin, end) in cuts}
    return frozenset(set(_pattern("words").findall(framed)) ^ theirs).intersection(signs)


@lru_cache(maxsize=1)
def normalizer_of(names: tuple[str, ...]) -> Any:
    """The library's normalizer that does `names` one after the other; None for none."""
    if not names:
        return None
    parts = [NORMALIZERS[name]() for name in names]
    return parts[0] if len(parts) == 1 else normalizers.Sequence(parts)


def check_name(what: str, name: str, known: Sequence[str]) -> None:
    """Raise UserError unless `name` is one of `known`."""
    if name not in known:
        raise UserError(f"{what} is '{name}'; choose one of {', '.join(known)}")


@lru_cache(maxsize=1)
def _backend(name: str) -> Any:
    return PRETOKENIZERS[name].backend()


@lru_cache(maxsize=1)
def _pattern(name: str) -> Any:
    return regex.compile(PRETOKENIZERS[name].pattern())
