"""The corpora that token files were made of, as their own reports tell."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megalm.report.json_lines import mapping, objects, read_named

_KIND, _REPORT, _LEVELS = "megalm corpus", "report.json", 4
MOST_LANGUAGES = 8


class Corpus(NamedTuple):
    """A corpus: what it holds, where it came from, which steps cleaned it, and its languages with their documents."""

    path: str
    documents: int
    characters: int
    sources: list[str]
    steps: list[str]
    languages: list[tuple[str, int]]


def corpora_of(inputs: Iterable[str]) -> list[Corpus]:
    """The corpora that the files `inputs` lie in, each once; none for files of anything else."""
    places = dict.fromkeys(folder for path in inputs for folder in list(Path(path).parents)[:_LEVELS])
    return [corpus for folder in places for corpus in _corpus(folder)]


def _corpus(folder: Path) -> Iterator[Corpus]:
    report = read_named(folder / _REPORT) or {}
    if report.get("kind") != _KIND:
        return
    languages = mapping(mapping(mapping(report.get("kept")).get("histograms")).get("language"))
    counts = [(str(name), count) for name, count in languages.items() if type(count) is int]
    yield Corpus(
        path=str(folder),
        documents=_count(report.get("documents")),
        characters=_count(report.get("characters")),
        sources=_names(report.get("sources")),
        steps=_names(report.get("steps")),
        languages=sorted(counts, key=lambda pair: -pair[1])[:MOST_LANGUAGES],
    )


def _names(entries: Any) -> list[str]:
    steps = [entry.get("step") for entry in objects(entries)]
    return [step for step in steps if isinstance(step, str)]


def _count(value: Any) -> int:
    return value if type(value) is int else 0
