"""Term lists: which words name a group, an occupation or an attribute; those of megalm, or a user's own."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import Field, ValidationError, field_validator

from megalm.config.load import explain
from megalm.config.section import Section
from megalm.corpus.words import Split
from megalm.errors import UserError

OWN = Path(__file__).parent / "lists"
"""The lists that come with megalm, for English."""
NAME, PROFESSION, ATTRIBUTE, DEROGATORY = "name", "profession", "attribute", "derogatory"
_RESERVED = (NAME, PROFESSION, ATTRIBUTE, DEROGATORY)
_KEY = re.compile(r"\w[\w -]*")

Lists = dict[str, list[str]]


class TermsFile(Section):
    """A file of terms: words and phrases; one with a capital letter is found only with a capital in that place."""

    language: str = Field("en", description="Language of the terms; documents in others are passed by.")
    groups: dict[str, Lists] = Field({}, description="Who is spoken of: axis, group, terms.")
    professions: Lists = Field({}, description="Occupations, each with its forms.")
    attributes: Lists = Field({}, description="Classes of words that may stand beside a group.")
    derogatory: Lists = Field({}, description="Slurs by the group that they are aimed at.")
    names: Lists = Field({}, description="First names: female, male; those in the same place are exchanged.")
    pairs: list[tuple[str, str]] = Field([], description="Gendered words that are exchanged: female, male.")
    one_way: dict[str, str] = Field({}, description="Words that become another and do not come back.")

    @field_validator("groups", "professions", "attributes", "derogatory", "names")
    @classmethod
    def _named(cls, lists: dict[str, Any]) -> dict[str, Any]:
        inner = (key for value in lists.values() if isinstance(value, dict) for key in value)
        for key in [*lists, *inner]:
            if not _KEY.fullmatch(key):
                raise ValueError(f"the name {key!r} may hold letters, digits, spaces, _ and - alone")
            if key in _RESERVED and isinstance(lists.get(key), dict):
                raise ValueError(f"the axis {key!r} has a section of its own; give the axis another name")
        return lists


def axis_of(label: str) -> str:
    """The axis of a label: gender of gender.female."""
    return label.partition(".")[0]


class Term(NamedTuple):
    """A term as it is looked for: lower-case tokens, which of them need a capital, and the labels it stands for."""

    axis: int
    rest: tuple[str, ...]
    capitals: tuple[int, ...]
    labels: tuple[str, ...]


class Terms:
    """All terms of a file by their first token. Labels are AXIS.GROUP, such as gender.female or profession.nurse."""

    def __init__(self, file: TermsFile):
        self.file = file
        axes = {**file.groups, NAME: file.names}
        self.groups = frozenset(f"{axis}.{group}" for axis, lists in axes.items() for group in lists)
        axes |= {PROFESSION: file.professions, ATTRIBUTE: file.attributes, DEROGATORY: file.derogatory}
        self.labels = frozenset(f"{axis}.{group}" for axis, lists in axes.items() for group in lists)
        self.axes = [axis for axis, lists in axes.items() if lists]
        self.starts = _by_first_token(axes)


@lru_cache(maxsize=4)
def _compiled(path: Path | None, state: tuple[int, int]) -> Terms:
    data: dict[str, Any] = {"groups": {}}
    for own in sorted(OWN.glob("*.yaml")):
        _lay_over(data, _read(own))
    if path is not None:
        user = _read(path)
        _validated(user, path)
        _lay_over(data, user)
    return Terms(_validated(data, path or OWN))


def load_terms(path: str | Path | None = None) -> Terms:
    """The terms of the file `path` laid over megalm's own, read once a process; raises UserError for a bad file.

    An axis of `groups` in the file takes the place of that axis, each other section that of the whole section.
    """
    if path is None:
        return _compiled(None, (0, 0))
    path = Path(path).expanduser()
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"term lists {path}: {error.strerror}; check the path") from None
    return _compiled(path, (status.st_mtime_ns, status.st_size))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"term lists {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(
            f"term lists {path}: expected keys (groups, professions, ...), found {type(data).__name__}"
        )
    return data


def _lay_over(data: dict[str, Any], more: dict[str, Any]) -> None:
    groups = {**data["groups"], **more.get("groups", {})}
    data |= {**more, "groups": groups}


def _validated(data: dict[str, Any], path: Path) -> TermsFile:
    try:
        return TermsFile.model_validate(data)
    except ValidationError as error:
        raise UserError(f"term lists {path}: {explain(error, TermsFile)}") from None


def _by_first_token(axes: dict[str, Lists]) -> dict[str, list[Term]]:
    """Terms by their first token, longer ones before those that begin them; one that stands for several groups is one."""
    found: dict[tuple[int, tuple[str, ...], tuple[int, ...]], list[str]] = {}
    for number, (axis, lists) in enumerate(axes.items()):
        for group, terms in lists.items():
            for term in terms:
                tokens = Split(term.replace("’", "'")).tokens
                if not tokens:
                    raise UserError(f"term lists: {axis}.{group} holds the term {term!r}, which has no word")
                capitals = tuple(place for place, token in enumerate(tokens) if token[0].isupper())
                labels = found.setdefault((number, tuple(map(str.lower, tokens)), capitals), [])
                if f"{axis}.{group}" not in labels:
                    labels.append(f"{axis}.{group}")
    starts: dict[str, list[Term]] = {}
    for (number, lower, capitals), labels in sorted(found.items(), key=lambda item: -len(item[0][1])):
        starts.setdefault(lower[0], []).append(Term(number, lower[1:], capitals, tuple(labels)))
    return starts
