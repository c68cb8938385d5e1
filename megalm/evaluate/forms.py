"""Reads records from the forms that files of questions come in."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megalm.dataset.tables import read_rows
from megalm.errors import UserError
from megalm.tokenizer.documents import COMPRESSED_SUFFIXES, open_input
from megalm.tokenizer.records import Broken, read_records

Form = Literal["squad", "winobias", "bbq"]
_TABLES = {".csv": "csv", ".tsv": "tsv"}
_RECORDS = (".json", ".jsonl", ".ndjson")
_TEXT = (".txt", ".text", ".md")
_BRACKETS = re.compile(r"\[([^\[\]]+)\]")
_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)
_NUMBER = re.compile(r"^\d+\s+")


class Record(NamedTuple):
    """A record and where it stands, for messages."""

    where: str
    row: Mapping[str, Any]


def records_of(path: Path, form: Form | None) -> Iterator[Record]:
    """All records of a file; UserError with one line for what is damaged or not in the form."""
    readers: dict[Form | None, Callable[[Path], Iterator[Record]]] = {
        None: _plain,
        "squad": _squad,
        "winobias": _winobias,
        "bbq": _bbq,
    }
    return readers[form](path)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix in COMPRESSED_SUFFIXES else path.suffix.lower()


def _plain(path: Path) -> Iterator[Record]:
    suffix = _suffix(path)
    if suffix in _TABLES:
        for row in read_rows(path, _TABLES[suffix], numbered=False):
            yield Record(f"{path} line {row.line}", row.record)
    elif suffix in _RECORDS:
        for record in read_records(path):
            where = f"{path} line {record.line}"
            if isinstance(record.value, Broken):
                raise UserError(f"{where} is not JSON ({record.value.problem}); mend the line")
            if not isinstance(record.value, dict):
                raise UserError(f"{where} holds a {type(record.value).__name__}; an object is needed")
            yield Record(where, record.value)
    elif suffix in _TEXT:
        try:
            with open_input(path) as file:
                text = file.read().decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason}); convert it first") from None
        if text.strip():
            yield Record(str(path), {"text": text})
    else:
        known = " ".join((*_TABLES, *_RECORDS, *_TEXT))
        raise UserError(f"{path} is of no known kind; its name must end in one of {known} (then .gz or .zst)")


def _squad(path: Path) -> Iterator[Record]:
    """SQuAD's nested articles, flat: title, context, question, id, answers (texts)."""
    try:
        with open_input(path) as file:
            data = json.load(file)
        for article in data["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    yield Record(
                        f"{path} question {question['id']}",
                        {
                            "title": article.get("title", ""),
                            "context": paragraph["context"],
                            "question": question["question"],
                            "id": question["id"],
                            "answers": [answer["text"] for answer in question["answers"]],
                        },
                    )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not in SQuAD's form ({type(error).__name__}: {error}); check the file"
        ) from None


def _winobias(path: Path) -> Iterator[Record]:
    """WinoBias's lines (arXiv:1804.06876), such as `1 [The chief] hired the clerk because [he] ...`, as columns.

    sentence: without brackets; pronoun: the last one in brackets; choices: both people, in the sentence's order; answer: the place
    of the one in brackets. Who the other one is the file's other lines tell, in which it is in brackets.
    """
    sentences = list(_bracketed(path))
    people = {_ARTICLE.sub("", told[0]).strip().lower() for _, _, told in sentences}
    for where, text, told in sentences:
        lower = text.lower()
        places = {
            match.start(): person
            for person in people
            for match in [re.search(rf"\b{re.escape(person)}\b", lower)]
            if match
        }
        # of `worker` and `construction worker` the longer one
        found = [
            person
            for _, person in sorted(places.items())
            if not any(person != other and person in other for other in places.values())
        ]
        meant = _ARTICLE.sub("", told[0]).strip().lower()
        others = [person for person in found if person != meant]
        if not others:
            raise UserError(
                f"{where}: nobody but {meant!r} who is in brackets elsewhere in the file; in WinoBias's form two people are"
            )
        choices = [f"the {person}" for person in found if person in (meant, others[0])]
        row = {
            "sentence": text,
            "pronoun": told[-1],
            "choices": choices,
            "answer": choices.index(f"the {meant}"),
        }
        yield Record(where, row)


def _bracketed(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Where a sentence stands, its text and what is in brackets in it."""
    try:
        with open_input(path) as file:
            lines = file.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}); convert it first") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        told = _BRACKETS.findall(line)
        if len(told) < 2:
            raise UserError(
                f"{path} line {number} is not in WinoBias's form: a person and a pronoun in brackets are needed; check the file"
            )
        yield f"{path} line {number}", _NUMBER.sub("", re.sub(r"[\[\]]", "", line.strip())), told


def _bbq(path: Path) -> Iterator[Record]:
    """BBQ's records (arXiv:2110.08193) and two columns more: unknown, the place of the answer that it is not known, and biased, that of
    the answer that the stereotype would take: in a negative question its target, else the other one; -1 where that is not told.

    The target is told by the column target_loc (of BBQ's additional_metadata.csv), or by the groups of additional_metadata.
    """
    for record in _plain(path):
        row = record.row
        try:
            groups = [_group_of(row["answer_info"][f"ans{place}"]) for place in range(3)]
            unknown = next(place for place, names in enumerate(groups) if "unknown" in names)
            target = _target_of(row, groups, unknown)
            biased = target if target < 0 or row["question_polarity"] == "neg" else 3 - unknown - target
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise UserError(
                f"{record.where} is not in BBQ's form ({type(error).__name__}: {error}); check the file"
            ) from None
        yield Record(record.where, {**row, "unknown": unknown, "biased": biased})


def _group_of(told: list[str]) -> set[str]:
    """Names of an answer's group: as it is, and its last part (F-Black is of Black, too)."""
    names = {re.sub(r"[^\w-]", "", name.lower()) for name in told}
    return names | {name.rpartition("-")[2] for name in names}


def _target_of(row: Mapping[str, Any], groups: list[set[str]], unknown: int) -> int:
    """The place of the answer that is of the stereotyped group; -1 where none is, or both are."""
    if (told := row.get("target_loc")) not in (None, "", "NA"):
        place = int(told)
        return place if place in {0, 1, 2} - {unknown} else -1
    stereotyped = {
        re.sub(r"[^\w-]", "", name.lower()) for name in row["additional_metadata"]["stereotyped_groups"]
    }
    found = [place for place, names in enumerate(groups) if place != unknown and names & stereotyped]
    return found[0] if len(found) == 1 else -1
