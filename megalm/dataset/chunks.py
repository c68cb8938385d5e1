"""First pass of a build: a piece of the input becomes sorted runs of tokenized documents on disk."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm import atomic
from megalm.dataset.indexed import token_dtype
from megalm.dataset.runs import ROW, Documents, RunSize, write_run
from megalm.errors import UserError
from megalm.tokenizer import Tokenizer, load_tokenizer
from megalm.tokenizer.documents import Document, SampleBy, read_documents

SPLITS = ("train", "valid", "test")
SPLIT_SHIFT = 62  # a sort key is the split in the two top bits, then 62 random bits
RUN_TOKENS = 1 << 26  # memory bound of a worker: 128 MiB of uint16
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """Everything but the inputs that determines the result."""

    tokenizer: str
    tokenizer_hash: str
    vocab_size: int
    eod_id: int
    append_eod: bool
    text_key: str
    sample_by: SampleBy
    splits: str
    seed: int


@dataclass(frozen=True)
class Chunk:
    """The documents of one input file that begin in bytes [start, stop); stop None is the end."""

    key: str
    """Names the chunk's files; differs wherever the result may differ."""
    path: str
    file_number: int
    start: int
    stop: int | None
    size: int
    """Bytes on disk, for progress."""


@dataclass
class Counts:
    """What a chunk gave."""

    runs: list[RunSize] = field(default_factory=list)
    tokens: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    """Of each split."""


def run_path(folder: Path, key: str, number: int) -> Path:
    """Return the file of run `number` of the chunk `key`."""
    return folder / f"{key}-{number:05d}.run"


def split_limits(splits: str) -> list[int]:
    """Return the upper limits of a 64-bit hash for train, valid and test, from shares such as "98,1,1".

    Raises UserError unless there are one to three shares, none negative, not all zero.
    """
    try:
        shares = [Fraction(part.strip()) for part in splits.split(",")]
    except (ValueError, ZeroDivisionError):
        shares = []
    if not 1 <= len(shares) <= len(SPLITS) or min(shares) < 0 or not sum(shares):
        raise UserError(f"splits is '{splits}'; give the shares of train, valid and test, such as 98,1,1")
    shares += [Fraction(0)] * (len(SPLITS) - len(shares))
    return [int(sum(shares[: i + 1]) / sum(shares) * 2**64) for i in range(len(SPLITS))]


def chunk_marker(folder: Path, key: str) -> Path:
    """Return the file that says the chunk is done, and holds its counts."""
    return folder / f"{key}.json"


def read_counts(folder: Path, key: str) -> Counts:
    """Return the counts of a finished chunk."""
    found = json.loads(chunk_marker(folder, key).read_text(encoding="utf-8"))
    return Counts([RunSize(*size) for size in found["runs"]], found["tokens"])


def tokenize_chunk(chunk: Chunk, recipe: Recipe, folder: Path) -> None:
    """Write the runs of `chunk` into `folder`, then the marker that says they are complete."""
    counts = Counts()
    waiting: list[Documents] = []

    def flush() -> None:
        if waiting:
            path = run_path(folder, chunk.key, len(counts.runs))
            counts.runs.append(write_run(path, Documents.join(waiting)))
            waiting.clear()

    source = read_documents(Path(chunk.path), recipe.text_key, recipe.sample_by, chunk.start, chunk.stop)
    for batch in _batches(source):
        documents = _tokenized(batch, chunk.file_number, recipe)
        split_D = documents.rows["key"] >> np.uint64(SPLIT_SHIFT)
        for split in range(len(SPLITS)):
            counts.tokens[split] += int(documents.rows["tokens"][split_D == split].sum())
        waiting.append(documents)
        if sum(len(part.tokens) for part in waiting) >= RUN_TOKENS:
            flush()
    flush()
    atomic.write_text(chunk_marker(folder, chunk.key), json.dumps(asdict(counts)))


def _tokenized(batch: list[Document], file_number: int, recipe: Recipe) -> Documents:
    """Return the ids of a batch's texts, and what decides on their places in the result."""
    dtype = token_dtype(recipe.vocab_size)
    ids, lengths = _tokenizer(recipe.tokenizer).encode_ragged([document.text for document in batch])
    tokens = ids.astype(dtype)
    if recipe.append_eod:
        tokens = np.insert(tokens, np.cumsum(lengths), dtype.type(recipe.eod_id))
        lengths = lengths + 1
    rows = np.zeros(len(batch), ROW)
    rows["offset"] = [document.offset for document in batch]
    rows["file"] = file_number
    rows["tokens"] = lengths
    rows["key"] = _keys(batch, file_number, recipe)
    nothing = np.empty(0, np.uint8)
    return Documents(rows, tokens, nothing, nothing)


def _keys(batch: list[Document], file_number: int, recipe: Recipe) -> NDArray[np.uint64]:
    """A document's split is by its text alone, so that copies never lie on both sides; the place in the split by where
    the text lies in the inputs, so that copies do not end up side by side."""
    text_D = _hashes([document.text.encode() for document in batch])
    place_D = _hashes([repr((recipe.seed, file_number, document.offset)).encode() for document in batch])
    key_D = place_D >> np.uint64(64 - SPLIT_SHIFT)
    for limit in split_limits(recipe.splits):
        if limit < 2**64:
            key_D += (text_D >= np.uint64(limit)).astype(np.uint64) << np.uint64(SPLIT_SHIFT)
    return key_D


def hash_text(text: bytes) -> int:
    """Return the 64 bits that decide on the split of a text (UTF-8)."""
    return int(_hashes([text])[0])


def _hashes(values: list[bytes]) -> NDArray[np.uint64]:
    digests = b"".join([hashlib.blake2b(value, digest_size=8).digest() for value in values])
    return np.frombuffer(digests, "<u8")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Gather documents that have a text."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        if document.text:
            batch.append(document)
            characters += len(document.text)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)
