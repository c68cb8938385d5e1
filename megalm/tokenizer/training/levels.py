"""Tokenizers whose tokens are words, characters or bytes as they stand in the text."""

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megalm.tokenizer.json_pieces import BYTE_CHARACTERS
from megalm.tokenizer.load import TOKENIZER_NAME
from megalm.tokenizer.training.cutting import PRETOKENIZERS, Cutter, normalizer_of
from megalm.tokenizer.training.kinds import BYTES, EOD_TOKEN, Files, Kind, Settings, Training, check_apart

UNKNOWN = "<unk>"
_FALLBACK = [f"<0x{byte:02X}>" for byte in range(BYTES)]
_NORMALIZERS = ("nfc", "nfd", "nfkc", "nfkd", "lowercase", "strip-accents")


def tokenizer_file(backend: Tokenizer, special_tokens: tuple[str, ...]) -> Files:
    """`backend` with its special tokens as a tokenizer.json."""
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special_tokens])
    return {TOKENIZER_NAME: backend.to_str(pretty=True).encode()}


def _cut(settings: Settings) -> Cutter:
    return Cutter(settings.pretokenizer, settings.normalizers)


def _frequent(training: Training, reserved: int) -> list[str]:
    """The words frequent enough, most frequent first, as many as fit beside `reserved` tokens."""
    settings, counts = training.settings, training.counts.at_least(training.settings.min_count)
    size = None if settings.vocab_size is None else settings.vocab_size - reserved
    return [counts.words[i].decode() for i in np.argsort(-counts.counts, kind="stable")[:size]]


def _check_room(tokens: int, what: str, settings: Settings) -> None:
    if settings.vocab_size is not None:
        settings.room(what, tokens)


def _fit_words(training: Training) -> Files:
    settings = training.settings
    tokens = [*settings.special_tokens, *_frequent(training, len(settings.special_tokens))]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = PRETOKENIZERS["words"].backend()  # type: ignore[assignment]
    backend.normalizer = normalizer_of(settings.normalizers)
    return tokenizer_file(backend, settings.special_tokens)


def _fit_characters(training: Training) -> Files:
    settings = training.settings
    reserved = [*settings.special_tokens, *_FALLBACK]
    tokens = [*reserved, *_frequent(training, len(reserved))]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], byte_fallback=True))
    backend.normalizer = normalizer_of(settings.normalizers)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])  # type: ignore[assignment]
    return tokenizer_file(backend, settings.special_tokens)


def _check_words(settings: Settings) -> None:
    check_apart(settings.special_tokens, lambda token: len(Cutter("words").count([token])) == 1)
    _check_room(1, "a word", settings)


def _check_characters(settings: Settings) -> None:
    check_apart(settings.special_tokens, lambda token: len(token) == 1 or token in _FALLBACK)
    _check_room(BYTES, f"{BYTES} bytes", settings)


def _fit_bytes(training: Training) -> Files:
    specials = training.settings.special_tokens
    tokens = [*specials, *BYTE_CHARACTERS]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer_file(backend, specials)


def _check_bytes(settings: Settings) -> None:
    check_apart(settings.special_tokens, BYTE_CHARACTERS.__contains__)
    _check_room(BYTES, f"{BYTES} bytes", settings)


WORD = Kind(
    cut=_cut,
    fit=_fit_words,
    check=_check_words,
    pretokenizers=("words",),
    normalizers=_NORMALIZERS,
    special_tokens=(EOD_TOKEN, UNKNOWN),
    needs_size=False,
)
CHARACTER = Kind(
    cut=_cut, fit=_fit_characters, check=_check_characters, normalizers=_NORMALIZERS, needs_size=False
)
BYTE = Kind(cut=_cut, fit=_fit_bytes, check=_check_bytes, options=(), needs_text=False, needs_size=False)
