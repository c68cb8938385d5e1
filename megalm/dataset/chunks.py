"""First pass of a build: a piece of the input becomes sorted runs of tokenized documents on disk."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from megalm import atomic
from megalm.dataset.chat import ChatFile, to_documents
from megalm.dataset.pieces import prompt_of, tokenized
from megalm.dataset.recipe import Recipe
from megalm.dataset.runs import Documents, Place, RunSize, write_run
from megalm.splits import SPLITS, split_limits
from megalm.tokenizer import Tokenizer, load_tokenizer
from megalm.tokenizer.documents import read_documents

T = TypeVar("T")

SPLIT_SHIFT = 62  # a sort key is the split in the two top bits, then 62 random bits
RUN_TOKENS = 1 << 26  # memory bound of a worker: 128 MiB of uint16
BATCH_CHARACTERS = 1 << 20


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
    splits: list[Place] = field(default_factory=lambda: [Place(0, 0, 0)] * len(SPLITS))
    """How much there is of each split."""
    masked: int = 0
    """Tokens of prompts, which do not count in the loss."""
    records: int = 0
    """Of a file of conversations: how many there are, good or bad."""


def run_path(folder: Path, key: str, number: int) -> Path:
    """Return the file of run `number` of the chunk `key`."""
    return folder / f"{key}-{number:05d}.run"


def chunk_marker(folder: Path, key: str) -> Path:
    """Return the file that says the chunk is done, and holds its counts."""
    return folder / f"{key}.json"


def read_counts(folder: Path, key: str) -> Counts:
    """Return the counts of a finished chunk."""
    found = json.loads(chunk_marker(folder, key).read_text(encoding="utf-8"))
    splits = [Place(*size) for size in found["splits"]]
    runs = [RunSize(*size) for size in found["runs"]]
    return Counts(runs, splits, found["masked"], found["records"])


def notes_path(folder: Path, key: str) -> Path:
    """Return the file that names the records of the chunk `key` that were left out or changed, a JSON object a line."""
    return folder / f"{key}.notes"


def tokenize_chunk(chunk: Chunk, recipe: Recipe, folder: Path) -> None:
    """Write the runs of `chunk` into `folder`, then the marker that says they are complete."""
    counts = Counts()
    waiting: list[Documents] = []

    def flush() -> None:
        if waiting:
            run = run_path(folder, chunk.key, len(counts.runs))
            counts.runs.append(write_run(run, waiting))
            waiting.clear()

    for documents in (_of_chats if recipe.extras.chat else _of_texts)(chunk, recipe, folder, counts):
        split_D = documents.rows["key"] >> np.uint64(SPLIT_SHIFT)
        for split, before in enumerate(counts.splits):
            rows = documents.rows[split_D == split]
            size = Place(len(rows), int(rows["tokens"].sum()), int(rows["name"].sum()))
            counts.splits[split] = before.plus(size)
        counts.masked += len(documents.counts) - int(documents.counts.sum())
        waiting.append(documents)
        if sum(len(part.tokens) for part in waiting) >= RUN_TOKENS:
            flush()
    flush()
    atomic.write_text(chunk_marker(folder, chunk.key), json.dumps(asdict(counts)))


def _of_texts(chunk: Chunk, recipe: Recipe, folder: Path, counts: Counts) -> Iterator[Documents]:
    path, tokenizer = Path(chunk.path), _tokenizer(recipe.tokenizer)
    source = read_documents(path, recipe.text_key, recipe.sample_by, chunk.start, chunk.stop)
    for batch in _batches(source, lambda document: len(document.text)):
        documents = tokenized(batch, path, chunk.file_number, recipe, tokenizer)
        texts, key = [document.text for document in batch], recipe.extras.prompt_key
        if key is not None:
            texts = [prompt_of(document, path, key) or document.text for document in batch]
        documents.rows["key"] = _keys(texts, [document.offset for document in batch], chunk, recipe)
        yield documents


def _of_chats(chunk: Chunk, recipe: Recipe, folder: Path, counts: Counts) -> Iterator[Documents]:
    assert recipe.extras.chat is not None
    tokenizer = _tokenizer(recipe.tokenizer)
    file = ChatFile(Path(chunk.path), recipe.extras.chat, tokenizer, recipe.extras.id_key)
    for batch in _batches(file.samples(), lambda sample: len(sample.ids)):
        keys_D = _keys(
            [sample.prompt for sample in batch], [sample.offset for sample in batch], chunk, recipe
        )
        yield to_documents(batch, chunk.file_number, recipe.vocab_size, keys_D)
    counts.records = file.read
    lines = [json.dumps(note._asdict(), ensure_ascii=False) + "\n" for note in file.notes]
    atomic.write_text(notes_path(folder, chunk.key), "".join(lines))


def _keys(texts: list[str], offsets: list[int], chunk: Chunk, recipe: Recipe) -> NDArray[np.uint64]:
    """A document's split is by its prompt, else by its text, so that copies never lie on both sides; the place in the split
    by where the text lies in the inputs, so that copies do not end up side by side."""
    text_D = _hashes([text.encode() for text in texts])
    place_D = _hashes([f"({recipe.seed}, {chunk.file_number}, {offset})".encode() for offset in offsets])
    key_D = place_D >> np.uint64(64 - SPLIT_SHIFT)
    for limit in split_limits(recipe.splits):
        if limit < 2**64:
            key_D += (text_D >= np.uint64(limit)).astype(np.uint64) << np.uint64(SPLIT_SHIFT)
    return key_D


def _hashes(values: list[bytes]) -> NDArray[np.uint64]:
    """`megalm.splits.hash64` of each value."""
    digests = b"".join([hashlib.blake2b(value, digest_size=8).digest() for value in values])
    return np.frombuffer(digests, "<u8")


def _batches(documents: Iterator[T], size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Gather documents that are not empty."""
    batch: list[T] = []
    gathered = 0
    for document in documents:
        if size := size_of(document):
            batch.append(document)
            gathered += size
            if gathered >= BATCH_CHARACTERS:
                yield batch
                batch, gathered = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)
