"""Adds up what all tasks counted into report.json, which also says that a corpus is complete."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

import megalm
from megalm import atomic
from megalm.corpus.bias.figures import figures_by_group
from megalm.corpus.shards import shard_paths
from megalm.corpus.tally import Tally
from megalm.corpus.tasks import Ended

Report = dict[str, Any]
DAMAGE = {
    "broken": "broken",
    "truncated": "truncated",
    "too_large": "too large",
    "invalid_utf8": "with invalid UTF-8 (read with U+FFFD in its place)",
}


class WriteReport(PipelineStep):
    """The last stage: removes what the stages left for each other, then writes report.json."""

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
    kept = merged[-1][1]["kept"][0]
    steps = [{"stage": stage, **tally.to_json()} for stage, counts in merged for tally in counts["steps"]]
    return {
        "kind": "megalm corpus",
        "megalm": megalm.__version__,
        "documents": kept.documents_out,
        "characters": kept.characters_out,
        "shards": [path.name for path in shard_paths(output / "documents")],
        "sources": [tally.to_json() for _, counts in merged for tally in counts["sources"]],
        "steps": steps,
        **figures_by_group(steps),
        "kept": kept.to_json(),
        "recipe": recipe,
    }


def merge_counts(folder: Path) -> dict[str, list[Tally]]:
    """The tallies that the tasks of one stage wrote, added up by their places."""
    merged: dict[str, list[Tally]] = {"sources": [], "steps": [], "kept": []}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for kind, entries in (record | {"kept": [record["kept"]]}).items():
            for place, entry in enumerate(entries):
                if place == len(merged[kind]):
                    merged[kind].append(Tally(entry["step"]))
                merged[kind][place].add(Tally.from_json(entry))
    return merged


def damage_in(report: Report) -> str | None:
    """One line about all that the sources could not read, None where that is nothing."""
    total: Counter[str] = Counter()
    for source in report["sources"]:
        total.update({name: source["counters"].get(name, 0) for name in DAMAGE})
    found = [f"{count:,} {DAMAGE[name]}" for name, count in total.items() if count]
    return f"records in the sources that could not be read whole: {', '.join(found)}" if found else None


def report_path(output: Path) -> Path:
    """Where the report of a corpus is."""
    return output / "report.json"


def write_report(output: Path, report: Report) -> None:
    """Write the report in one step."""
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    atomic.write_bytes(report_path(output), text.encode("utf-8", "replace"))  # names of files may be no UTF-8


def read_report(output: Path) -> Report | None:
    """The report of a complete corpus, else None."""
    path = report_path(output)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def sweep(output: Path) -> None:
    """Remove the temporary files that killed tasks have left."""
    for path in output.rglob(".*.tmp"):
        path.unlink(missing_ok=True)
