"""Documents a second of one core through every cleaning step, on real pages, beside datatrove's own blocks.

`--data` is a folder with pages in .html or .html.gz files at any depth. Times are of this process and those it
started, in seconds of CPU. "flow" is what a recipe does: documents removed by one step do not reach the next. "all
steps on all" lets each step see every document that has text, whatever the others said: the work of a corpus of which
every page is good. datatrove's blocks need packages of its extra `processing` (spaCy and more), and its blocks for
languages and bad words download their models and lists, so that they are left out.
"""

import argparse
import gzip
import importlib
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from megalm.corpus.clean.encoding import decode
from megalm.corpus.pages import page_document
from megalm.corpus.registry import step_class
from megalm.corpus.step import Step

GOALS = {"precise": 30, "fast": 150}
STEPS = [
    "url_blocklist",
    "url_words",
    "extract",
    "normalize",
    "language",
    "gopher_repetition",
    "gopher_quality",
    "c4",
    "fineweb",
    "symbol_lines",
    "symbols",
    "bad_words",
    "pii",
]
PEERS = [
    "filters.url_filter:URLFilter",
    "extractors:Trafilatura",
    "filters:GopherRepetitionFilter",
    "filters:GopherQualityFilter",
    "filters:C4QualityFilter",
    "filters:FineWebQualityFilter",
    "formatters.pii:PIIFormatter",
]
BAD_WORDS = [f"badword{number}" for number in range(400)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with .html or .html.gz files")
    parser.add_argument("--limit", type=int, default=None, help="this many pages at most")
    parser.add_argument("--no-peers", action="store_true", help="leave datatrove's blocks out")
    parser.add_argument("--by-step", action="store_true", help="show the time of each step")
    arguments = parser.parse_args()
    pages = read_pages(arguments.data, arguments.limit)
    size = sum(map(len, pages.values())) / len(pages) / 1000
    print(f"{len(pages)} pages of {size:.0f} kB on average")
    with tempfile.TemporaryDirectory() as folder:
        for mode, goal in GOALS.items():
            for name, run in (("flow", flow), ("all steps on all", all_on_all)):
                steps = make_steps(mode, Path(folder))
                warm(steps, pages)
                seconds, kept = timed(lambda run=run, steps=steps: run(documents(pages), steps))
                report(f"megalm {mode}, {name}", len(pages), seconds, kept, goal)
                if arguments.by_step:
                    print_steps(steps, len(pages))
    if not arguments.no_peers:
        blocks = make_peers()
        warm(blocks, pages, decoded)
        seconds, kept = timed(lambda: flow(decoded(pages), blocks))
        report("datatrove, flow", len(pages), seconds, kept, None)


def read_pages(folder: Path, limit: int | None) -> dict[str, bytes]:
    """The pages below `folder` by their name."""
    files = sorted([*folder.rglob("*.html"), *folder.rglob("*.html.gz"), *folder.rglob("*.htm.gz")])[:limit]
    if not files:
        sys.exit(f"no .html or .html.gz files below {folder}")
    return {f.name: gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else f.read_bytes() for f in files}


def documents(pages: dict[str, bytes]) -> Iterator[Document]:
    """The pages as a source would give them."""
    for name, payload in pages.items():
        yield page_document(name, f"https://site.example/{name}", payload, "text/html", {})


def decoded(pages: dict[str, bytes]) -> Iterator[Document]:
    """The pages as datatrove's readers would give them: text of the page, decoded before the clock runs."""
    for name, payload in pages.items():
        text = decode(payload)[0]
        yield Document(text=text, id=name, metadata={"url": f"https://site.example/{name}"})


def make_steps(mode: str, folder: Path) -> list[Step]:
    """All steps with their defaults; lists of addresses and words are those of datatrove and 400 made-up words."""
    words = folder / "words.txt"
    words.write_text("\n".join(BAD_WORDS), encoding="utf-8")
    options: dict[str, dict[str, Any]] = {
        "extract": {"mode": mode},
        "url_blocklist": {"cache": folder},
        "bad_words": {"lists": {"en": words}},
    }
    classes = [step_class(name) for name in STEPS]
    return [c(c.Settings(**options.get(c.name, {}))) for c in classes]  # type: ignore[misc]


def make_peers() -> list[PipelineStep]:
    """datatrove's blocks that run here, saying which do not."""
    blocks = []
    for place in PEERS:
        module, _, name = place.partition(":")
        try:
            block = getattr(importlib.import_module(f"datatrove.pipeline.{module}"), name)
            blocks.append(block())
            if "Gopher" in name or "Quality" in name:
                importlib.import_module("spacy")
        except ImportError as error:
            blocks = [b for b in blocks if type(b).__name__ != name]
            print(f"  datatrove's {name} does not run here: {' '.join(str(error).split())}")
    return blocks


def flow(stream: Iterable[Document], steps: list[Any]) -> int:
    """Run the steps as a pipeline; how many documents come out."""
    for step in steps:
        stream = step.run(stream)
    return sum(1 for _ in stream)


def all_on_all(stream: Iterable[Document], steps: list[Step]) -> int:
    """Run each step on every document that has text; how many none of them removes."""
    removed: Counter[str] = Counter()
    names = []
    for step in steps:
        judge = step.apply

        def note(
            document: Document, judge: Callable[[Document], str | None] = judge, name: str = step.name
        ) -> Any:
            reason = judge(document)
            removed[document.id] += reason is not None
            return reason if name == "extract" else None

        step.apply = note  # type: ignore[method-assign]
        stream = step.run(stream)
    for document in stream:
        names.append(document.id)
    return sum(removed[name] == 0 for name in names)


def warm(
    steps: list[Any], pages: dict[str, bytes], source: Callable[..., Iterator[Document]] = documents
) -> None:
    """Load models and lists, make indexes."""
    first = dict(list(pages.items())[:2])
    flow(source(first), steps)


def timed(run: Callable[[], int]) -> tuple[float, int]:
    """Seconds of CPU that `run` takes, child processes included, and what it returns."""
    before = cpu_seconds()
    result = run()
    return cpu_seconds() - before, result


def cpu_seconds() -> float:
    """User and system time of this process and of those it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def report(name: str, pages: int, seconds: float, kept: int, goal: int | None) -> None:
    """Print a row."""
    wanted = f"  (goal {goal})" if goal else ""
    print(f"{name:<36} {pages / seconds:8.1f} documents/s of CPU, {kept} of {pages} kept{wanted}")


def print_steps(steps: list[Step], pages: int) -> None:
    """Print the milliseconds that each step takes for a page of all, waiting included."""
    for step in steps:
        removed = ", ".join(f"{name} {count}" for name, count in step.tally.removed.most_common(4))
        print(f"    {step.name:<18} {step.tally.seconds / pages * 1000:8.3f} ms  {removed}")


if __name__ == "__main__":
    main()
