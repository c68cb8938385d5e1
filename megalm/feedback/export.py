"""Writes what people said as data to train on, and beside it what became of it and which models it is of."""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.dataset.preference_records import key_of
from megalm.errors import UserError
from megalm.feedback.forms import FORMS, Form, records_of
from megalm.feedback.material import Material, Source, gather
from megalm.feedback.store import Store, Who
from megalm.feedback.votes import Tally
from megalm.hashes import sha256_of
from megalm.lineage.record import program
from megalm.run_files import EXPORT_LINEAGE
from megalm.splits import hash64

Record = dict[str, Any]
HELD_OUT = "held_out"
MODE = 0o600
"""Of the files: people's words are for whoever may read the store."""


@dataclass(frozen=True)
class ExportSettings:
    """form: of the records. held_out: share of the conversations for a second file. with_cut: answers that max_tokens cut off, too."""

    form: Form
    held_out: float = 0.0
    with_cut: bool = False

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"form {self.form!r}: choose one of {', '.join(FORMS)}")
        if not 0 <= self.held_out < 1:
            raise UserError(f"held-out is {self.held_out:g}; give a share from 0 to below 1, such as 0.1")


def export_lines(store: Store, form: Form, who: Who) -> str:
    """JSON lines of an owner's conversations with consent."""
    material = gather(store, who)
    return _lines(records_of(form, material, material.judged, Tally()))


def export_file(
    store: Store, path: Path, settings: ExportSettings, overwrite: bool = False
) -> dict[str, Any]:
    """Write the records of all conversations with consent to `path`, those held out beside it; what is recorded of them.

    A conversation is held out by a hash of its name and owner: so it stays on its side in every later export. Of the held-out
    records those whose prompt is also in the other file are left out. UserError where nothing is left, or a file is there already.
    """
    targets = {"train": path} | ({HELD_OUT: held_out_path(path)} if settings.held_out else {})
    for target in targets.values():
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists; choose another file, or replace it with --overwrite")
    material = gather(store)
    sides: dict[str, list[int]] = {name: [] for name in targets}
    for number, one in material.judged.items():
        sides[side_of(one.source, settings.held_out)].append(number)
    tallies = {name: Tally() for name in targets}
    records: dict[str, list[Record]] = {}
    for name, numbers in sides.items():
        known = {_prompt_key(record) for record in records.get("train", [])}
        records[name] = records_of(
            settings.form, material, numbers, tallies[name], settings.with_cut, known, name == HELD_OUT
        )
    _check(store, records, material, tallies)
    return {
        name: _write(targets[name], name, records[name], tallies[name], material, store, settings)
        for name in targets
    }


def held_out_path(path: Path) -> Path:
    """Where the records that are held out go."""
    return path.with_name(f"{path.stem}.{HELD_OUT}{path.suffix}")


def side_of(source: Source, held_out: float) -> str:
    """`train` or `held_out`."""
    name = "\0".join(("feedback", *source))
    return HELD_OUT if hash64(name.encode()) < held_out * 2**64 else "train"


def _prompt_key(record: Record) -> object:
    return key_of(record["prompt"] if "prompt" in record else record["messages"][:-1])


def _lines(records: Iterable[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _check(
    store: Store, records: dict[str, list[Record]], material: Material, tallies: dict[str, Tally]
) -> None:
    if records["train"]:
        return
    dropped = +sum((tally.dropped for tally in tallies.values()), Counter[str]())
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "nothing"
    raise UserError(
        f"the store {store.shown} gives no record: {len(material.judged)} answers with consent, "
        f"{material.without_consent} conversations without; dropped: {told}"
    )


def _write(
    path: Path,
    split: str,
    records: list[Record],
    tally: Tally,
    material: Material,
    store: Store,
    settings: ExportSettings,
) -> dict[str, Any]:
    """A file, and its record."""
    with atomic.open_atomic(path, "w") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            os.fchmod(file.fileno(), MODE)  # before there is anything in it
        file.write(_lines(records))
    made_of: list[Record] = [
        {"role": "answers", "path": checkpoint, "checkpoint": checkpoint, "sha256": lineage}
        | dict[str, Any](model=model, step=step, answers=count)
        for (model, checkpoint, step, lineage), count in sorted(tally.models.items(), key=str)
    ]
    record = {
        "made_by": "megalm feedback export",
        "program": program(),
        "store": store.shown,
        "form": settings.form,
        "split": split,
        "held_out": settings.held_out,
        "unfinished": settings.with_cut,
        "records": len(records),
        "sha256": sha256_of(path),
        "sources": dict(sorted((+tally.sources).items())),
        "dropped": dict(sorted((+tally.dropped).items())),
        "conversations_without_consent": material.without_consent,
        "masked": dict(sorted(material.masked.items())),
        "made_of": made_of,
    }
    atomic.write_text(path.with_name(path.name + EXPORT_LINEAGE), json.dumps(record, indent=1) + "\n")
    return record | {"path": str(path)}
