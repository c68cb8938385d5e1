"""Configurations side by side: what differs between runs, what is not as by default, and everything."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from megalm.config import Config
from megalm.report.run import RunRecord

ABSENT = "–"
_NOTHING = (ABSENT, "null", "[]", "{}")
"""What a key that is not there, or has no value, may be written as."""
MOST_KEYS = 4000
"""Of one configuration; more is none of ours."""
_DEEPEST = 30  # YAML can make a section that holds itself
_SURE_TO_DIFFER = ("run.dir",)


class Row(NamedTuple):
    """A key and its value in each run, or the one value that all have."""

    key: str
    values: list[str]


class Configurations(NamedTuple):
    """Keys that differ between runs, those that are not as by default, and all of them."""

    differing: list[Row]
    chosen: list[Row]
    all: list[Row]


def compare(runs: Sequence[RunRecord]) -> Configurations:
    """The configurations of `runs`, keys in the order of the first that has them."""
    flat = [flatten(run.config) for run in runs]
    default = flatten(Config().model_dump())
    keys = list(dict.fromkeys(key for values in flat for key in values))
    rows = {key: [values.get(key, ABSENT) for values in flat] for key in keys}
    kinds = {key: {_essence(value) for value in rows[key]} for key in keys}
    return Configurations(
        [Row(key, rows[key]) for key in keys if len(kinds[key]) > 1 and key not in _SURE_TO_DIFFER],
        [
            Row(key, rows[key][:1])
            for key in keys
            if len(kinds[key]) == 1 and kinds[key] != {_essence(default.get(key, ABSENT))}
        ],
        [Row(key, rows[key]) for key in keys],
    )


def _essence(value: str) -> str:
    return ABSENT if value in _NOTHING else value


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Values as text by their dotted keys, such as `rlhf.rewards.0.name`."""
    return dict(islice(_leaves(config, ""), MOST_KEYS))


def _leaves(value: Any, key: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        parts = list(enumerate(value))
    if depth == _DEEPEST:
        yield key, "…"
        return
    if not parts:
        yield key, as_text(value)
    for name, item in parts:
        yield from _leaves(item, f"{key}.{name}" if key else str(name), depth + 1)


def as_text(value: Any) -> str:
    """As YAML would have it, near enough to read."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value) if value != {} else "{}"
