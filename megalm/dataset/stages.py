"""The stages of a build, each a list of things to do that may be done in any order, by any process."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from megalm import atomic
from megalm.dataset.chat_notes import check_conversations, conversations_record
from megalm.dataset.chunks import chunk_marker, tokenize_chunk
from megalm.dataset.placing import Layout
from megalm.dataset.plan import InputFile, Plan
from megalm.dataset.publishing import publish, remove_dataset
from megalm.dataset.recipe import Extras, Recipe
from megalm.dataset.shuffle import (
    Arrangement,
    arrange,
    arrangement_path,
    piece_marker,
    read_edges,
    write_piece,
)
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.hashes import sha256_of
from megalm.splits import SPLITS
from megalm.tasks import Task

Record = dict[str, Any]
OPTIONAL = {field.name for field in fields(Extras)} | {"fim_tokens"}
"""Names in a record that a plain build leaves out."""
DIGEST_SHARE = 32
"""So many times as fast as tokenizing is hashing, about."""


class Work(NamedTuple):
    """Something to do, and the file that says that it is done."""

    task: Task
    marker: Path


def first_pass(plan: Plan, folder: Path) -> list[Work]:
    """Hash every input, and turn every chunk into sorted runs."""
    work = []
    chunks = iter(plan.chunks)
    chunk = next(chunks, None)
    for number, file in enumerate(plan.files):
        digest = _digest_path(folder, file)
        work.append(Work(Task(_save_digest, (file, digest), file.size // DIGEST_SHARE), digest))
        while chunk is not None and chunk.file_number == number:
            task = Task(tokenize_chunk, (chunk, plan.recipe, folder), chunk.size)
            work.append(Work(task, chunk_marker(folder, chunk.key)))
            chunk = next(chunks, None)
    return work


def begin_second_pass(plan: Plan, folder: Path) -> None:
    """Make the files that the pieces are written to, once all chunks are there; UserError where an input has changed."""
    plan.check_unchanged()
    _check_done(first_pass(plan, folder))
    if plan.recipe.extras.chat:
        check_conversations(plan, folder)
    arrange(plan, folder)


def second_pass(plan: Plan, folder: Path) -> list[Work]:
    """Write the pieces of the datasets to their places."""
    arrangement = Arrangement.read(folder)
    layouts = arrangement.layouts(plan, folder)
    work = []
    for number, piece in enumerate(arrangement.pieces):
        arguments = (arrangement, number, layouts[piece.split], folder)
        work.append(Work(Task(write_piece, arguments, piece.tokens), piece_marker(folder, number)))
    return work


def finish(plan: Plan, folder: Path, prefix: Path) -> dict[str, Record]:
    """Hash the datasets, put them in their places and remove `folder`; returns the record of each split."""
    _check_done(second_pass(plan, folder))
    arrangement = Arrangement.read(folder)
    inputs = [
        {"path": file.path, "bytes": file.size, "sha256": _digest_path(folder, file).read_text()}
        for file in plan.files
    ]
    records = {}
    conversations = conversations_record(plan, folder) if plan.recipe.extras.chat else None
    for split, layout in arrangement.layouts(plan, folder).items():
        if layout.masked:
            numbers = (n for n, piece in enumerate(arrangement.pieces) if piece.split == split)
            layout.write_edges(edge for number in numbers for edge in read_edges(folder, number))
        records[SPLITS[split]] = _record(plan.recipe, SPLITS[split], layout, inputs)
        if conversations is not None:
            records[SPLITS[split]]["conversations"] = conversations
        write_sidecar(layout.prefix, records[SPLITS[split]])
    # A build that is killed from here on begins its second pass again: its files are no longer in one place.
    arrangement_path(folder).unlink()
    _publish(folder, prefix, records)
    remove_folder(folder)
    return records


def trash(folder: Path) -> Path:
    """Return the name of a build folder that is being removed."""
    return folder.with_name(f".{folder.name}.trash")


def share_of(work: Sequence[Work], rank: int, count: int) -> list[Work]:
    """Return what task `rank` of `count` does: a stretch of about the same size for each."""
    total = sum(one.task.size for one in work) or 1
    before, share = 0, []
    for one in work:
        if min(before * count // total, count - 1) == rank:
            share.append(one)
        before += one.task.size
    return share


def missing(work: Sequence[Work]) -> list[Task]:
    """Return what is not done yet."""
    return [one.task for one in work if not one.marker.exists()]


def _check_done(work: Sequence[Work]) -> None:
    """A cluster may begin a stage although tasks of the one before have failed."""
    if left := missing(work):
        raise RuntimeError(
            f"{len(left)} of {len(work)} parts of the stage before are missing; see its logs, and give the command again"
        )


def _record(recipe: Recipe, split: str, layout: Layout, inputs: list[Record]) -> Record:
    digests = {f"{kind}_sha256": sha256_of(path) for kind, path in layout.paths().items() if kind != "crc"}
    return {
        "kind": KIND,
        "tokenizer": recipe.tokenizer,
        "tokenizer_hash": recipe.tokenizer_hash,
        "vocab_size": recipe.vocab_size,
        "eod_id": recipe.eod_id,
        "append_eod": recipe.append_eod,
        "dtype": layout.dtype.name,
        "documents": layout.size.documents,
        "sequences": layout.size.documents,
        "tokens": layout.size.tokens,
        **digests,
        "split": split,
        "splits": recipe.splits,
        "seed": recipe.seed,
        "text_key": recipe.text_key,
        "sample_by": recipe.sample_by,
        **{name: value for name, value in recipe.settings().items() if name in OPTIONAL},
        "inputs": inputs,
    }


def _publish(folder: Path, prefix: Path, records: dict[str, Record]) -> None:
    """Move the datasets to their names; a reader never finds files of two builds under one prefix."""
    for name in SPLITS:
        if name not in records:
            remove_dataset(f"{prefix}_{name}")
    publish({f"{prefix}_{name}": folder / "out" / name for name in records})


def remove_folder(folder: Path) -> None:
    """Remove the build folder; a kill amid the removal leaves nothing that looks like an unfinished build."""
    os.rename(folder, trash(folder))
    shutil.rmtree(trash(folder), ignore_errors=True)


def _digest_path(folder: Path, file: InputFile) -> Path:
    return folder / f"{file.key}.sha256"


def _save_digest(file: InputFile, path: Path) -> None:
    atomic.write_text(path, sha256_of(file.path))
