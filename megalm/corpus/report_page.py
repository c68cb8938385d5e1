"""Draws report.html from report.json alone: what each step did, histograms, and samples of documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from megalm.corpus.funnel import FunnelRow, funnel
from megalm.corpus.report_bias import removal_table, representation_tables
from megalm.html.chart import Shown, first, make_chart
from megalm.html.numbers import counted, duration, percent, short
from megalm.html.page import render
from megalm.html.picture import strip

MOST_ROWS = 40
"""Rows of any table; the rest is in report.json."""
MOST_SOURCES = 10
"""Rows of sources in the funnel; they have a table of their own."""
MOST_CHARTS = 24
MOST_SAMPLED_REASONS = 40
MOST_REASONS_A_STEP = 8
MOST_COUNTERS = 12
RECIPE_LINES = 400
DAMAGE = ("broken", "truncated", "too_large", "invalid_utf8")

Report = Mapping[str, Any]


def draw_page(report: Report) -> str:
    """The page as one HTML file, which needs no other."""
    rows = funnel(dict(report))
    read = sum(source["documents_out"] for source in report["sources"])
    return render(
        "megalm.corpus",
        "report.html.jinja",
        {
            "report": report,
            "title": Path(str(report["recipe"].get("output", ""))).name or "corpus",
            "read": read,
            "raw_pages": any(step["step"] == "extract" for step in report["steps"]),
            "figures": _figures(report, rows, read),
            "funnel": _funnel(rows),
            "steps": _steps(report),
            "stages": first(report["stages"], MOST_ROWS),
            "reasons": _reasons(report),
            "sources": first(report["sources"], MOST_ROWS),
            "damage": _damage(report),
            "folders": _folders(report.get("folders", [])),
            "charts": _charts(report),
            "kept_samples": report["kept"]["samples"].get("kept", []),
            "removed_samples": _samples(report),
            "removal": removal_table(report.get("removal_by_group", [])),
            "representation": representation_tables(report.get("representation", [])),
            "recipe": _recipe(report["recipe"]),
        },
    )


def _figures(report: Report, rows: list[FunnelRow], read: int) -> list[tuple[str, str, str]]:
    """The numbers on top: name, value, and what to say beside it."""
    share = percent(report["documents"] / read) if read else "none"
    peak = max(row.characters for row in rows)
    seconds = sum(stage["seconds"] for stage in report["stages"])
    return [
        ("documents kept", counted(report["documents"]), f"{share} of {counted(read)} read"),
        (
            "characters kept",
            short(report["characters"]),
            f"{percent(report['characters'] / peak)} of the most there were" if peak else "no text",
        ),
        ("documents removed", counted(sum(row.removed for row in rows)), f"by {len(report['steps'])} steps"),
        ("work of all tasks", duration(seconds), f"{len(report['shards']):,} shards"),
    ]


def _funnel(rows: list[FunnelRow]) -> Shown:
    """The rows with their bars; of very many sources the largest, of very many steps those that removed most."""
    widest = max((row.documents + row.removed for row in rows), default=0) or 1
    sources = sorted((row for row in rows if row.kind == "source"), key=lambda row: -row.documents)
    steps = sorted((row for row in rows if row.kind == "step"), key=lambda row: -row.removed)
    left_out = {id(row) for row in [*sources[MOST_SOURCES:], *steps[MOST_ROWS:]]}
    drawn = [(row, _bars(row, widest)) for row in rows if id(row) not in left_out]
    return Shown(drawn, len(rows) - len(drawn))


def _bars(row: FunnelRow, widest: int) -> Markup:
    style = "source" if row.kind in ("source", "read") else "kept"
    documents = strip((row.documents / widest, style), (row.removed / widest, "removed"))
    return documents + strip((row.characters_share, "characters"))


def _steps(report: Report) -> Shown:
    """Each step with the commonest of its reasons and counters; of very many, those that removed most."""
    steps = [
        {
            **step,
            "place": place,
            "gone": sum(step["removed"].values()),
            "why": first(_commonest(step["removed"]), MOST_REASONS_A_STEP),
            "counted": first(_commonest(step["counters"]), MOST_COUNTERS),
        }
        for place, step in enumerate(report["steps"])
    ]
    chosen = sorted(sorted(steps, key=lambda step: -step["gone"])[:MOST_ROWS], key=lambda step: step["place"])
    return Shown(chosen, len(steps) - len(chosen))


def _commonest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _reasons(report: Report) -> Shown:
    """All reasons of all steps, the commonest first, with bars."""
    found = [
        (reason, step["step"], count, count / (step["documents_in"] or 1))
        for step in report["steps"]
        for reason, count in step["removed"].items()
    ]
    found.sort(key=lambda entry: (-entry[2], entry[0], entry[1]))
    shown = first(found, MOST_ROWS)
    most = shown.rows[0][2] if shown.rows else 1
    return Shown([(*entry, strip((entry[2] / most, "removed"))) for entry in shown.rows], shown.more)


def _damage(report: Report) -> list[tuple[str, list[int]]]:
    """For each source that could not be read whole, how many records of each kind of damage it had."""
    rows = [
        (source["step"], [source["counters"].get(name, 0) for name in DAMAGE]) for source in report["sources"]
    ]
    return [row for row in rows if any(row[1])][:MOST_ROWS]


def _folders(folders: Sequence[Mapping[str, Any]]) -> Shown:
    shown = first(sorted(folders, key=lambda f: (-f["documents"], f["folder"])), MOST_ROWS)
    most = max((folder["documents"] for folder in folders), default=0) or 1
    return Shown([(folder, strip((folder["documents"] / most, "kept"))) for folder in shown.rows], shown.more)


def _charts(report: Report) -> Shown:
    """Lengths, languages and sources before and after, then all that steps observed."""
    kept = report["kept"]["histograms"]
    lengths: Counter[str] = Counter()
    for entry in [*report["sources"], *report["steps"]]:
        lengths.update(entry["histograms"].get("characters", {}))
    languages: Counter[str] = Counter()
    for step in report["steps"]:
        languages.update(step["histograms"].get("language", {}) if step["step"] == "language" else {})
    found = [
        ("Characters of a document", {"before": lengths, "kept": kept.get("characters", {})}),
        ("Language", {"before": languages, "kept": kept.get("language", {})}),
    ]
    if len(kept.get("source", {})) > 1:
        found.append(("Source", {"kept": kept["source"]}))
    found += [
        (f"{step['step']}: {name}", {"documents": histogram})
        for step in report["steps"]
        for name, histogram in step["histograms"].items()
        if name not in ("characters", "language", "folder")
    ]
    told = [
        (title, {name: histogram for name, histogram in series.items() if histogram})
        for title, series in found
    ]
    shown = first([chart for chart in told if chart[1]], MOST_CHARTS)
    return Shown([make_chart(*chart) for chart in shown.rows], shown.more)


def _samples(report: Report) -> Shown:
    """The samples of each reason: step, reason, how many it removed, samples."""
    found = [
        (step["step"], reason, step["removed"].get(reason, 0), samples)
        for step in report["steps"]
        for reason, samples in step["samples"].items()
    ]
    # The commonest reasons where there are too many, in the order of the steps.
    chosen = sorted(range(len(found)), key=lambda i: -found[i][2])[:MOST_SAMPLED_REASONS]
    return Shown([found[i] for i in sorted(chosen)], len(found) - len(chosen))


def _recipe(recipe: Mapping[str, Any]) -> Shown:
    lines = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100).splitlines()
    return first(lines, RECIPE_LINES)
