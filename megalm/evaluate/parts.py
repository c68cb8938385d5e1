"""The records of a task that has two parts: two files, or records and their twins with groups exchanged."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megalm.corpus.bias.swap import Swap
from megalm.corpus.bias.terms import load_terms
from megalm.errors import UserError
from megalm.evaluate.forms import Record
from megalm.evaluate.records import Files
from megalm.evaluate.task import Task


class Source(NamedTuple):
    """A record that a question is made of.

    unit: the same number for records that belong together: of two files those at the same place, a record and its twin. part: which
    of the task's parts it is of. twin: the same record with groups exchanged.
    """

    record: Record
    unit: int
    part: str | None = None
    twin: Record | None = None


def sources_of(task: Task, folder: Path, files: Files) -> list[Source]:
    """What the task's questions are made of. UserError where nothing can be exchanged."""
    if isinstance(task.data, dict):
        return [
            Source(record, unit, part)
            for part, name in task.data.items()
            for unit, record in enumerate(files.records(name, folder))
        ]
    records = files.records(task.data, folder)
    if not task.swap:
        return [Source(record, unit) for unit, record in enumerate(records)]
    twins = _twins(task, records)
    if not twins:
        raise UserError(
            f"task {task.name}: no record of {task.data} holds a word to exchange ({', '.join(task.swap)}); leave out `swap`"
        )
    if not task.parts:
        return [Source(records[unit], unit, None, twin) for unit, twin in twins.items()]
    pairs = [(unit, zip(task.parts, (records[unit], twin), strict=True)) for unit, twin in twins.items()]
    return [Source(record, unit, part) for unit, pair in pairs for part, record in pair]


def chosen(sources: Sequence[Source], limit: int | None, seed: str) -> list[int]:
    """Numbers of the sources that are asked: of `limit` units at most, drawn from `seed`, in the file's order."""
    units = sorted({source.unit for source in sources})
    if limit is not None and limit < len(units):
        units = random.Random(seed).sample(units, limit)
    picked = set(units)
    return [number for number, source in enumerate(sources) if source.unit in picked]


def _twins(task: Task, records: Sequence[Record]) -> dict[int, Record]:
    """The records in which something can be exchanged, exchanged, by number."""
    swap = Swap(load_terms().file, gender="gender" in task.swap, names="names" in task.swap)
    found = {}
    for number, record in enumerate(records):
        row = {name: _exchanged(value, swap) for name, value in record.row.items()}
        if row != dict(record.row):
            found[number] = Record(record.where, row)
    return found


def _exchanged(value: Any, swap: Swap) -> Any:
    """The same value with all texts in it exchanged."""
    if isinstance(value, str):
        return swap(value)
    if isinstance(value, Mapping):
        return {name: _exchanged(one, swap) for name, one in value.items()}
    return [_exchanged(one, swap) for one in value] if isinstance(value, list | tuple) else value
