"""Builds token datasets with a label for each document: without bad rows and copies, split by text within each class.

Everything is in memory at a time: meant for up to some millions of short texts.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megalm import atomic
from megalm.dataset.indexed import idx_path, token_dtype
from megalm.dataset.labels import labels_as_bytes, labels_path
from megalm.dataset.publishing import check_targets, publish, staged
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.dataset.tables import KINDS, kind_of, read_rows
from megalm.dataset.writer import IndexedDatasetWriter
from megalm.errors import UserError
from megalm.hashes import sha256_of
from megalm.splits import SPLITS, hash64, split_limits
from megalm.tokenizer import Tokenizer, load_tokenizer

NAMED = 3
"""So many of the rows that are left out for one reason are named."""
_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class Columns:
    """Which columns (or keys) hold the text, its label and, of pairs, the second text: names, or numbers from 1 where the
    files have no line of names."""

    text: str = "text"
    label: str = "label"
    pair: str | None = None

    @property
    def numbered(self) -> bool:
        """Whether the columns are named by number."""
        return all(name.isdigit() for name in (self.text, self.label or "1", self.pair or "1"))


class Sample(NamedTuple):
    """A text, or a pair of them, and its label."""

    texts: tuple[str, ...]
    label: str

    @property
    def key(self) -> bytes:
        """What is the same in copies: the words, whatever their case and the white space between them."""
        return "\0".join(" ".join(text.casefold().split()) for text in self.texts).encode(
            "utf-8", "surrogatepass"
        )


@dataclass
class LeftOut:
    """Rows that are not taken: how many for each reason, and the first of them."""

    rows: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, where: str) -> None:
        """Count the row at `where`."""
        self.rows[reason] += 1
        if len(self.first[reason]) < NAMED:
            self.first[reason].append(where)

    def to_json(self) -> dict[str, Any]:
        """Return both, by reason."""
        return {reason: {"rows": count, "first": self.first[reason]} for reason, count in self.rows.items()}


def build_labelled(
    inputs: Sequence[str | Path],
    tokenizer_path: str | Path,
    prefix: str | Path,
    columns: Columns = Columns(),
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    splits: str = "80,10,10",
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Tokenize the labelled texts of CSV, TSV or JSONL files and split them into PREFIX_train, _valid and _test.

    kind: `csv`, `tsv` or `jsonl`; by default what the files' names say. labels: the classes in their order, by default all
    that are found, sorted. Of copies (texts that differ in case or white space alone) the first is taken; where their
    labels contradict each other none is. Which split a text is in depends on the texts with its label alone, so that each
    class has its share in each split; the order in a split depends on the texts and `seed`.

    Returns the records of the splits written and what was left out, by reason. Raises UserError for what cannot be read.
    """
    prefix = Path(prefix)
    targets = [f"{prefix}_{name}" for name in SPLITS] if prefix.name else [str(prefix)]
    check_targets(targets)
    there = [target for target in targets if idx_path(target).exists()]
    if there and not overwrite:
        raise UserError(
            f"{idx_path(there[0])} exists; choose another prefix or overwrite it with --overwrite"
        )
    tokenizer = load_tokenizer(tokenizer_path)
    parts, left_out = labelled_splits(inputs, columns, kind, labels, splits, seed)
    names = list(labels) if labels else sorted({sample.label for part in parts for sample in part})
    common = {
        "tokenizer": str(tokenizer_path),
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "append_eod": False,
        "text_key": columns.text,
        "label_key": columns.label,
        "pair_key": columns.pair,
        "splits": splits,
        "seed": seed,
        "inputs": [{"path": str(path), "sha256": sha256_of(path)} for path in inputs],
        "left_out": left_out.to_json(),
        "labels": names,
    }
    with staged(prefix) as folder:
        records = {}
        for split, part in zip(SPLITS, parts, strict=True):
            if part:
                records[split] = _write(folder / split, part, names, tokenizer, common | {"split": split})
        publish({f"{prefix}_{split}": folder / split for split in records})
    return {"splits": records, "left_out": left_out.to_json()}


def labelled_splits(
    inputs: Sequence[str | Path],
    columns: Columns = Columns(),
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    splits: str = "80,10,10",
    seed: int = 0,
) -> tuple[list[list[Sample]], LeftOut]:
    """The samples of train, valid and test in their order, and what was left out: see `build_labelled`."""
    limits, left_out = split_limits(splits), LeftOut()
    samples = _unique(_samples(list(map(Path, inputs)), columns, kind, labels, left_out), left_out)
    if not samples:
        raise UserError(f"no row has a text and a label; left out: {left_out.to_json()}")
    return _parted(samples, limits, seed), left_out


def _samples(
    paths: Iterable[Path], columns: Columns, kind: str | None, labels: Sequence[str] | None, left_out: LeftOut
) -> Iterator[tuple[str, Sample]]:
    """Yield where each good row stands, and the row."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"--format is '{kind}'; choose one of {', '.join(KINDS)}")
    for path in paths:
        found = kind or kind_of(path)
        if found is None:
            raise UserError(f"input {path} is of no known kind; say --format csv, tsv or jsonl")
        seen: set[str] = set()
        for line, record in read_rows(path, found, columns.numbered and found != "jsonl"):
            seen |= record.keys()
            where = f"{path} line {line}"
            label = label_text(record.get(columns.label), where)
            keys = [columns.text] if columns.pair is None else [columns.text, columns.pair]
            texts = tuple(text.strip() if isinstance(text := record.get(key), str) else "" for key in keys)
            if not label:
                left_out.add("no label", where)
            elif not all(texts):
                left_out.add("empty text", where)
            elif labels is not None and label not in labels:
                left_out.add(f"unknown label {label!r}", where)
            else:
                yield where, Sample(texts, label)
        _check_columns(path, seen, [*keys, columns.label] if seen else [])


def _check_columns(path: Path, seen: set[str], wanted: list[str]) -> None:
    """UserError where no row at all has a column."""
    for name in wanted:
        if name not in seen:
            raise UserError(
                f"input {path} has no column '{name}' (found {', '.join(sorted(seen)[:12])}); name the columns with "
                "--text-key and --label-key, by number where the file has no line of names"
            )


def label_text(value: Any, where: str) -> str:
    """The label as text, empty where there is none; numbers and truth values as JSON has them."""
    if value is None:
        return ""
    if isinstance(value, list | dict):
        raise UserError(f"{where} has {value!r} for a label; give one label a text")
    return str(value).strip() if not isinstance(value, bool) else str(value).lower()


def _unique(rows: Iterable[tuple[str, Sample]], left_out: LeftOut) -> list[Sample]:
    """The first of each text's copies, none where their labels differ."""
    read = list(rows)
    labels: dict[bytes, set[str]] = defaultdict(set)
    for _, sample in read:
        labels[sample.key].add(sample.label)
    kept: dict[bytes, Sample] = {}
    for where, sample in read:
        if len(labels[sample.key]) > 1:
            left_out.add("copies with different labels", where)
        elif kept.setdefault(sample.key, sample) is not sample:
            left_out.add("copy of another row", where)
    return list(kept.values())


def _parted(samples: list[Sample], limits: list[int], seed: int) -> list[list[Sample]]:
    """The samples of each split in their order: of each class, in the order of its texts' hashes, the share's first."""
    classes: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: hash64(sample.key)):
        classes[sample.label].append(sample)
    parts: list[list[Sample]] = [[] for _ in limits]
    for members in classes.values():
        begin = 0
        for part, limit in zip(parts, limits, strict=True):
            end = round(limit / 2**64 * len(members))
            part += members[begin:end]
            begin = end
    for part in parts:
        part.sort(
            key=lambda sample: hashlib.blake2b(f"{seed}/".encode() + sample.key, digest_size=16).digest()
        )
    return parts


def _write(
    prefix: Path, samples: list[Sample], names: list[str], tokenizer: Tokenizer, common: dict[str, Any]
) -> dict[str, Any]:
    """Write a split; a pair is a document of two sequences."""
    dtype = token_dtype(tokenizer.vocab_size)
    texts_each = len(samples[0].texts)
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for start in range(0, len(samples), _TEXTS_AT_ONCE):
            batch = samples[start : start + _TEXTS_AT_ONCE]
            ids, lengths = tokenizer.encode_ragged([text for sample in batch for text in sample.texts])
            ends = np.arange(texts_each, len(lengths) + 1, texts_each)
            writer.add_documents(ids.astype(dtype), lengths, ends)
    numbers = [names.index(sample.label) for sample in samples]
    atomic.write_bytes(labels_path(prefix), labels_as_bytes(numbers))
    counts = Counter(sample.label for sample in samples)
    record = {
        "kind": KIND,
        **common,
        "dtype": dtype.name,
        "documents": writer.num_documents,
        "sequences": writer.num_sequences,
        "tokens": writer.num_tokens,
        "bin_sha256": writer.sha256,
        **writer.side_digests,
        "labels_sha256": sha256_of(labels_path(prefix)),
        "label_counts": {name: counts[name] for name in names},
    }
    write_sidecar(prefix, record)
    return record
