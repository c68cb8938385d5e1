"""First pass of a build: a piece of the input becomes sorted runs of tokenized documents on disk."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalm import atomic
from megalm.dataset.indexed import token_dtype
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

    runs: int = 0
    tokens: list[int] = field(default_factory=lambda: [0] * len(SPLITS))
    """Of each split."""


class Run:
    """Documents of a chunk sorted by key: ids in one file, keys and first tokens in another."""

    def __init__(self, folder: Path, key: str, number: int) -> None:
        self.tokens_path = folder / f"{key}-{number:05d}.tokens"
        self.documents_path = folder / f"{key}-{number:05d}.npy"

    def write(self, keys: NDArray[np.uint64], documents: list[NDArray[Any]]) -> None:
        """Sort and save; the order of equal keys stays."""
        order = np.argsort(keys, kind="stable")
        lengths = np.array([len(document) for document in documents], np.uint64)[order]
        table = np.zeros((2, len(keys) + 1), np.uint64)
        table[0, :-1], table[0, -1] = keys[order], np.iinfo(np.uint64).max
        table[1, 1:] = np.cumsum(lengths)
        with atomic.open_atomic(self.tokens_path) as file:
            file.write(np.concatenate([documents[i] for i in order.tolist()]).tobytes())
        with atomic.open_atomic(self.documents_path) as file:
            np.save(file, table)

    def read(
        self, low: int, high: int, dtype: np.dtype[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return keys, lengths and ids of the documents with keys in [low, high), touching little else."""
        table = np.load(self.documents_path, mmap_mode="r")
        first, last = np.searchsorted(table[0], np.array([low, high], np.uint64)).tolist()
        starts = table[1, first : last + 1].astype(np.int64)
        count = int(starts[-1] - starts[0])
        tokens = np.fromfile(self.tokens_path, dtype, count, offset=int(starts[0]) * dtype.itemsize)
        return np.array(table[0, first:last]), np.diff(starts), tokens


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
    return Counts(**json.loads(chunk_marker(folder, key).read_text(encoding="utf-8")))


def tokenize_chunk(chunk: Chunk, recipe: Recipe, folder: Path) -> None:
    """Write the runs of `chunk` into `folder`, then the marker that says they are complete."""
    tokenizer = _tokenizer(recipe.tokenizer)
    dtype = token_dtype(recipe.vocab_size)
    limits = split_limits(recipe.splits)
    counts = Counts()
    keys: list[int] = []
    documents: list[NDArray[Any]] = []
    pending = 0

    def flush() -> None:
        if keys:
            Run(folder, chunk.key, counts.runs).write(np.array(keys, np.uint64), documents)
            counts.runs += 1
        keys.clear()
        documents.clear()

    source = read_documents(Path(chunk.path), recipe.text_key, recipe.sample_by, chunk.start, chunk.stop)
    for batch in _batches(source):
        filled = [document for document in batch if document.text]
        for document, ids in zip(filled, tokenizer.encode_batch([d.text for d in filled]), strict=True):
            if recipe.append_eod:
                ids.append(recipe.eod_id)
            split = _split_of(document.text, limits)
            keys.append(split << SPLIT_SHIFT | _shuffle_key(recipe.seed, chunk.file_number, document.offset))
            documents.append(np.array(ids, dtype))
            counts.tokens[split] += len(ids)
            pending += len(ids)
        if pending >= RUN_TOKENS:
            flush()
            pending = 0
    flush()
    atomic.write_text(chunk_marker(folder, chunk.key), json.dumps(asdict(counts)))


def _split_of(text: str, limits: list[int]) -> int:
    """By the text alone, so that copies of a document never lie on both sides."""
    value = _hash64(text.encode())
    return next(i for i, limit in enumerate(limits) if value < limit)


def _shuffle_key(seed: int, file_number: int, offset: int) -> int:
    """By the place, so that copies of a document do not end up side by side."""
    return _hash64(repr((seed, file_number, offset)).encode()) >> (64 - SPLIT_SHIFT)


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
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
