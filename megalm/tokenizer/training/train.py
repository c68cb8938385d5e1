"""Trains tokenizers of every kind from documents, and writes them."""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megalm import atomic
from megalm.errors import UserError
from megalm.launch import available_cores
from megalm.tasks import ends_on_sigterm
from megalm.tokenizer.base import Tokenizer
from megalm.tokenizer.documents import SampleBy, check_sample_by, expand_inputs
from megalm.tokenizer.load import FILE_NAMES, METADATA_NAME, load_tokenizer
from megalm.tokenizer.training.bpe import BPE
from megalm.tokenizer.training.counting import WordCounts, count_words
from megalm.tokenizer.training.cutting import check_name
from megalm.tokenizer.training.kinds import Files, Kind, Settings, Training
from megalm.tokenizer.training.levels import BYTE, CHARACTER, WORD
from megalm.tokenizer.training.merges import Ties
from megalm.tokenizer.training.sentencepiece import SENTENCEPIECE_BPE, UNIGRAM
from megalm.tokenizer.training.texts import cut_inputs
from megalm.tokenizer.training.wordpiece import WORDPIECE

KINDS: dict[str, Kind] = {
    "bpe": BPE,
    "unigram": UNIGRAM,
    "sentencepiece-bpe": SENTENCEPIECE_BPE,
    "wordpiece": WORDPIECE,
    "word": WORD,
    "character": CHARACTER,
    "byte": BYTE,
}
CHAT_TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "roles": ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
}
"""Special tokens of chat templates, by name."""
MAX_WORDS = 4_000_000
LARGEST_VOCABULARY = 1 << 22

logger = logging.getLogger(__name__)


def train_tokenizer(
    inputs: Sequence[str | Path],
    output: str | Path,
    kind: str = "bpe",
    vocab_size: int | None = None,
    pretokenizer: str | None = None,
    normalizers: Sequence[str] | None = None,
    special_tokens: Sequence[str] = (),
    chat_tokens: str | None = None,
    min_count: int = 1,
    ties: Ties = "ids",
    character_coverage: float = 0.9995,
    byte_fallback: bool = True,
    max_words: int = MAX_WORDS,
    text_key: str = "text",
    sample_by: SampleBy = "document",
    sample_bytes: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Tokenizer:
    """Train a tokenizer on the documents of `inputs` and write its files, megalm.json among them, into `output`.

    kind: a name of `KINDS`. vocab_size: tokens, special ones included; it may be left out for words and characters
    (then all are tokens) and bytes, and fewer come out where the text has no more. pretokenizer, normalizers: how texts
    are changed and cut first; names that the kind has, by default its own. special_tokens: further ones, after those
    of the kind and those of the set `chat_tokens`, a name of `CHAT_TOKENS`. min_count: a pair is merged, and a word or
    character kept, only if it occurs so often (SentencePiece: a word takes part in training only then). ties: which of
    equally frequent pairs is merged first, "ids" as Hugging Face's trainer, "bytes" the lexicographically greater.
    character_coverage: share of the text whose characters get tokens (SentencePiece, WordPiece). byte_fallback: bytes
    for all others (SentencePiece). max_words: the most frequent distinct words that training looks at.

    sample_bytes: read about so many bytes of text: of each part of each input the first documents, in proportion to
    its size. workers: processes that count words, by default the CPUs. Equal inputs give equal files, whatever
    `workers`. Memory is bounded by `max_words`, not by the inputs.

    Returns the tokenizer. Raises UserError for inputs or settings that do not fit, and for a tokenizer that is there
    already (datasets may have been made with it) unless `overwrite`.
    """
    check_name("kind", kind, list(KINDS))
    check_sample_by(sample_by)
    for name, value in (("sample_bytes", sample_bytes), ("workers", workers), ("max_words", max_words)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    output = Path(output)
    settings = Settings(
        kind=kind,
        vocab_size=vocab_size,
        special_tokens=_special_tokens(KINDS[kind], chat_tokens, special_tokens),
        pretokenizer=pretokenizer if pretokenizer is not None else KINDS[kind].pretokenizers[0],
        normalizers=_normalizers(KINDS[kind], normalizers),
        min_count=min_count,
        ties=ties,
        character_coverage=character_coverage,
        byte_fallback=byte_fallback,
    )
    _check(settings)
    if not overwrite and any((output / name).exists() for name in FILE_NAMES):
        raise UserError(
            f"{output} holds a tokenizer, with which datasets may have been made; choose another directory or --overwrite"
        )
    files = expand_inputs(inputs) if inputs or KINDS[kind].needs_text else []
    with _working_folder(output) as folder:
        counts = WordCounts([], np.zeros(0, np.int64), 0, 0.0)
        if KINDS[kind].needs_text:
            counts = count_words(
                cut_inputs(files, sample_by, sample_bytes),
                KINDS[kind].cut(settings),
                folder,
                max_words,
                text_key,
                sample_by,
                workers or available_cores(),
                progress,
            )
            _check_counts(counts, files, min_count)
        made = KINDS[kind].fit(Training(settings, counts, folder, progress))
        _publish(made, folder / "made", output, settings, files)
    tokenizer = load_tokenizer(output)
    if vocab_size is not None and tokenizer.vocab_size < vocab_size:
        logger.warning("the text gave %d tokens of the %d asked for", tokenizer.vocab_size, vocab_size)
    return tokenizer


def train_bpe(
    inputs: Sequence[str | Path],
    vocab_size: int,
    output: str | Path,
    special_tokens: Sequence[str] = (),
    text_key: str = "text",
    sample_by: SampleBy = "document",
    sample_bytes: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Tokenizer:
    """Train a byte-level BPE that cuts texts as GPT-2; `train_tokenizer` says more."""
    return train_tokenizer(
        inputs,
        output,
        "bpe",
        vocab_size,
        special_tokens=special_tokens,
        text_key=text_key,
        sample_by=sample_by,
        sample_bytes=sample_bytes,
        overwrite=overwrite,
        progress=progress,
    )


def _normalizers(kind: Kind, names: Sequence[str] | None) -> tuple[str, ...]:
    return kind.default_normalizers if names is None else tuple(name for name in names if name != "none")


def _special_tokens(kind: Kind, chat_tokens: str | None, others: Sequence[str]) -> tuple[str, ...]:
    if chat_tokens is not None:
        check_name("chat_tokens", chat_tokens, list(CHAT_TOKENS))
    chat = CHAT_TOKENS[chat_tokens] if chat_tokens is not None else ()
    tokens = tuple(dict.fromkeys([*kind.special_tokens, *chat, *others]))
    for token in tokens:
        if not token.strip():
            raise UserError("a special token is empty; give it a text")
        if "\n" in token or any("\ud800" <= character <= "\udfff" for character in token):
            raise UserError(
                f"special token {token!a} holds a line end or bytes that are no UTF-8; spell it otherwise"
            )
    return tokens


def _check(settings: Settings) -> None:
    kind = KINDS[settings.kind]
    if settings.pretokenizer not in kind.pretokenizers:
        names = [name for name in kind.pretokenizers if name is not None]
        if not names:
            raise UserError(f"kind {settings.kind} has no pretokenizer to choose; leave it out")
        check_name(f"pretokenizer of kind {settings.kind}", settings.pretokenizer or "", names)
    for name in settings.normalizers:
        if not kind.normalizers:
            raise UserError(f"kind {settings.kind} has no normalizer to choose; leave it out")
        check_name(f"normalizer of kind {settings.kind}", name, [*kind.normalizers, "none"])
    for name in settings.given_options():
        if name not in kind.options:
            taking = ", ".join(other for other, those in KINDS.items() if name in those.options)
            raise UserError(f"{name} plays no part in kind {settings.kind}; leave it out, or choose {taking}")
    if settings.min_count < 1:
        raise UserError(f"min_count is {settings.min_count}; it must be at least 1")
    check_name("ties", settings.ties, ["ids", "bytes"])
    if not 0 < settings.character_coverage <= 1:
        raise UserError(
            f"character_coverage is {settings.character_coverage:g}; it must be above 0 and at most 1"
        )
    if kind.needs_size and settings.vocab_size is None:
        raise UserError(f"kind {settings.kind} needs a vocabulary size; give vocab_size")
    if settings.vocab_size is not None and settings.vocab_size > LARGEST_VOCABULARY:
        raise UserError(f"vocab_size is {settings.vocab_size}; at most {LARGEST_VOCABULARY} is supported")
    kind.check(settings)


def _check_counts(counts: WordCounts, files: Sequence[Path], min_count: int) -> None:
    if not counts.words:
        raise UserError(f"no text in {', '.join(map(str, files))}; give files that hold some")
    if int(counts.counts.max()) < min_count:
        raise UserError(
            f"min_count is {min_count}, but the most frequent word occurs {counts.counts.max()} times; lower min_count"
        )
    if counts.left_out:
        logger.warning(
            "training looks at the %d most frequent of %d distinct words, %.2f%% of the text; raise max_words for more",
            len(counts.words),
            counts.distinct,
            100 * (1 - counts.left_out),
        )


def _publish(made: Files, folder: Path, output: Path, settings: Settings, inputs: Sequence[Path]) -> None:
    """Move the files to `output`; while they replace others, no megalm.json vouches for a mixture."""
    eod_token = KINDS[settings.kind].eod_token
    for name, content in made.items():
        atomic.write_bytes(folder / name, content)
    metadata: dict[str, Any] = {"kind": settings.kind, "eod_token": eod_token}
    metadata["hash"] = load_tokenizer(folder, eod_token).hash
    metadata["inputs"] = [{"path": str(path.absolute()), "bytes": path.stat().st_size} for path in inputs]
    atomic.write_text(folder / METADATA_NAME, json.dumps(metadata, indent=2) + "\n")
    output.mkdir(parents=True, exist_ok=True)
    for name in (METADATA_NAME, *FILE_NAMES):
        (output / name).unlink(missing_ok=True)
    for name in (*made, METADATA_NAME):
        os.replace(folder / name, output / name)
    atomic.sync_directory(output)


@contextlib.contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """A folder on the disk of `output`, gone at the end, and `output`'s parents too if nothing came into them."""
    made = [path for path in output.absolute().parents if not path.exists()]
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.training-", dir=output.absolute().parent))
    try:
        with ends_on_sigterm():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
