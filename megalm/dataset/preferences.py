"""Builds token datasets of preferences: written by a chat template, without bad records and copies, split by prompt.

Everything is in memory at a time: meant for up to some millions of answers.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megalm import atomic
from megalm.dataset.chat import ChatSettings, encode
from megalm.dataset.chat_notes import told
from megalm.dataset.indexed import idx_path, token_dtype
from megalm.dataset.labelled import LeftOut
from megalm.dataset.preference_records import Preference, one_kind, preference_of
from megalm.dataset.publishing import check_targets, publish, staged
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.dataset.values import values_as_bytes, values_path
from megalm.dataset.writer import IndexedDatasetWriter
from megalm.errors import UserError
from megalm.hashes import sha256_of
from megalm.splits import SPLITS, split_limits, split_of
from megalm.tokenizer import Tokenizer, load_tokenizer
from megalm.tokenizer.chat import ChatTemplate
from megalm.tokenizer.conversations import BadRecord
from megalm.tokenizer.records import Broken, read_records


class Answers(NamedTuple):
    """A document: the prompt with each of its answers as ids, and a mark (1) for each id of an answer's."""

    preference: Preference
    ids: list[list[int]]
    marks: list[list[int]]


def build_preferences(
    inputs: Sequence[str | Path],
    tokenizer_path: str | Path,
    prefix: str | Path,
    settings: ChatSettings,
    splits: str = "80,10,10",
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Tokenize the preferences of JSONL or JSON files and split them into PREFIX_train, _valid and _test.

    All of them are of one kind (`preference_records.Kind`). settings: the chat template, the most tokens of prompt and answer
    (`max_length`), a system's text, and how many may be bad (`max_rejected`). Of copies, which differ in case or white space
    alone, the first is taken; of records that contradict each other (the same answers swapped, one answer with two ratings)
    none is. The split goes by the user's first text, as in `build_dataset`; the order in a split by the record and `seed`.

    Returns the records of the splits written and what was left out, by reason. Raises UserError for what cannot be read, and
    where more than `max_rejected` is left out besides copies.
    """
    prefix = Path(prefix)
    targets = [f"{prefix}_{name}" for name in SPLITS] if prefix.name else [str(prefix)]
    check_targets(targets)
    there = [target for target in targets if idx_path(target).exists()]
    if there and not overwrite:
        raise UserError(
            f"{idx_path(there[0])} exists; choose another prefix or overwrite it with --overwrite"
        )
    limits, tokenizer, left_out = split_limits(splits), load_tokenizer(tokenizer_path), LeftOut()
    rows = list(_read(list(map(Path, inputs)), settings.system, left_out))
    kind = one_kind({p.kind: where for where, p in reversed(rows)}) if rows else "pairs"
    documents = list(_tokenized(_unique(rows, left_out), settings, tokenizer, left_out))
    _check_left_out(left_out, len(documents), settings.max_rejected)
    parts: list[list[Answers]] = [[] for _ in SPLITS]
    for document in documents:
        parts[split_of(document.preference.first_text.encode(), limits)].append(document)
    common = {
        "tokenizer": str(tokenizer_path),
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        "append_eod": False,
        "preferences": kind,
        "chat": asdict(settings),
        "splits": splits,
        "seed": seed,
        "inputs": [{"path": str(path), "sha256": sha256_of(path)} for path in inputs],
        "left_out": left_out.to_json(),
    }
    with staged(prefix) as folder:
        records = {}
        for split, part in zip(SPLITS, parts, strict=True):
            if part:
                part.sort(key=lambda document: _place(document, seed))
                records[split] = _write(folder / split, part, tokenizer, common | {"split": split})
        publish({f"{prefix}_{split}": folder / split for split in records})
    return {"splits": records, "left_out": left_out.to_json()}


def _read(paths: Iterable[Path], system: str | None, left_out: LeftOut) -> Iterator[tuple[str, Preference]]:
    """Yield where each good record stands, and the record."""
    for path in paths:
        if not path.is_file():
            raise UserError(f"input {path} does not exist; check the path")
        for record in read_records(path):
            where = f"{path} line {record.line}"
            try:
                if isinstance(record.value, Broken):
                    raise BadRecord("invalid_json", record.value.problem)
                yield where, preference_of(record.value, system)
            except BadRecord as error:
                left_out.add(error.reason, where)


def _unique(rows: Sequence[tuple[str, Preference]], left_out: LeftOut) -> Iterator[tuple[str, Preference]]:
    """The first of each preference's copies, none where they contradict each other."""
    found: dict[object, set[object]] = defaultdict(set)
    for _, preference in rows:
        matter, verdict = _opinion(preference)
        found[matter].add(verdict)
    seen = set()
    for where, preference in rows:
        matter, _ = _opinion(preference)
        if len(found[matter]) > 1:
            left_out.add("contradiction", where)
        elif matter in seen:
            left_out.add("copy", where)
        else:
            seen.add(matter)
            yield where, preference


def _opinion(preference: Preference) -> tuple[object, object]:
    """What is judged, and what is said of it."""
    answers = [preference.key(number) for number in range(len(preference.answers))]
    return (frozenset(answers), answers[0] if preference.kind == "pairs" else preference.value)


def _tokenized(
    rows: Iterable[tuple[str, Preference]], settings: ChatSettings, tokenizer: Tokenizer, left_out: LeftOut
) -> Iterator[Answers]:
    template = ChatTemplate(settings.template, tokenizer, settings.variables, settings.template_name)
    for where, preference in rows:
        try:
            yield _encoded(preference, settings, template)
        except BadRecord as error:
            left_out.add(error.reason, where)


def _encoded(preference: Preference, settings: ChatSettings, template: ChatTemplate) -> Answers:
    ids, marks = [], []
    for conversation in preference.conversations():
        answer_ids, mask = encode(conversation, template, "last")
        if not any(mask[1:]):  # the first token is never a label
            raise BadRecord("nothing_counts", "the template writes nothing of the answer")
        if settings.max_length is not None and len(answer_ids) > settings.max_length:
            raise BadRecord("too_long", f"{len(answer_ids)} tokens, max_length is {settings.max_length}")
        ids.append(answer_ids)
        marks.append(mask)
    return Answers(preference, ids, marks)


def _check_left_out(left_out: LeftOut, kept: int, most: float) -> None:
    """UserError where nothing is left, or more than a share of `most` is bad; copies are not."""
    bad = Counter({reason: count for reason, count in left_out.rows.items() if reason != "copy"})
    total = bad.total() + kept
    if not total:
        raise UserError("the inputs hold no record; check the files")
    if kept and bad.total() <= most * total:
        return
    share = f"more than max_rejected {most:g} of them" if kept else "all of them"
    first = "; ".join(f"{reason}: {left_out.first[reason][0]}" for reason in bad)
    raise UserError(
        f"{bad.total()} of {total} records cannot be learned from, {share}: {told(dict(bad))}; for instance {first}; mend "
        "them, or raise --max-rejected"
    )


def _place(document: Answers, seed: int) -> bytes:
    """By what the documents of a split are put in order."""
    preference = document.preference
    keys = "\0".join(preference.key(number) for number in range(len(preference.answers)))
    return hashlib.blake2b(f"{seed}/{keys}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _write(
    prefix: Path, documents: list[Answers], tokenizer: Tokenizer, common: dict[str, Any]
) -> dict[str, Any]:
    """Write a split; the answers of a prompt are the sequences of a document."""
    dtype = token_dtype(tokenizer.vocab_size)
    with IndexedDatasetWriter(prefix, dtype, masked=True) as writer:
        for document in documents:
            writer.add_documents(
                np.concatenate([np.array(ids, dtype) for ids in document.ids]),
                np.array([len(ids) for ids in document.ids]),
                np.array([len(document.ids)]),
                np.concatenate([np.array(marks, np.uint8) for marks in document.marks]),
            )
    atomic.write_bytes(
        values_path(prefix), values_as_bytes([document.preference.value for document in documents])
    )
    record = {
        "kind": KIND,
        **common,
        "dtype": dtype.name,
        "documents": writer.num_documents,
        "sequences": writer.num_sequences,
        "tokens": writer.num_tokens,
        "bin_sha256": writer.sha256,
        **writer.side_digests,
        "values_sha256": sha256_of(values_path(prefix)),
        "longest": max(len(ids) for document in documents for ids in document.ids),
    }
    write_sidecar(prefix, record)
    return record
