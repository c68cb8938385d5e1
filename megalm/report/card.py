"""Writes a model card in Markdown from what a run recorded, and says where it recorded nothing.

Its parts are those of Mitchell et al., Model Cards for Model Reporting (arXiv:1810.03993).
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from markupsafe import Markup, escape

import megalm
from megalm.config.rlhf import RL_TASKS
from megalm.html.numbers import counted, duration, short
from megalm.html.page import printable, render
from megalm.report import summary
from megalm.report.card_data import data_rows
from megalm.report.evaluations import TOPICS, scores_of
from megalm.report.lineage import Lineage, lineage_of
from megalm.report.notices import notices_of
from megalm.report.run import RunRecord
from megalm.report.summary import UNKNOWN, results_of

_PURPOSES = {
    "pretrain": "to go on from a text, one token after another",
    "mlm": "to fill in hidden tokens; a base for classifiers and for vectors of texts",
    "sft": "to answer messages of a conversation",
    "distill": "to go on from a text as its larger teacher does",
    "classify": "to give texts one of the labels below",
    "reward": "to give answers a number by which they are compared; it writes no text",
    "dpo": "to answer as the preferred ones of pairs of answers",
} | dict.fromkeys(RL_TASKS, "to give answers that its rewards are high for")
_MARKS = re.compile(r"([\\`*_\[\]|~])")
"""What means something in the middle of a line of Markdown."""


class Section(NamedTuple):
    """A heading, facts by name, and a table: its heads and rows."""

    title: str
    facts: list[tuple[str, str]]
    heads: list[str]
    rows: list[list[str]]


def write_card(run: RunRecord) -> str:
    """The card of the model that `run` trains, in its state of the last recorded step."""
    lineage = lineage_of(run)
    sections = [
        Section("Model", list(_model(run, lineage)), [], []),
        Section("Intended use", list(_use(run)), [], []),
        Section("Training data", *data_rows(run, lineage)),
        Section("Training", list(_training(run)), [], []),
        Section(
            "Evaluation",
            list(_evaluation(run)),
            ["figure", "first", "last", "at step", "interval"],
            _figures(run),
        ),
        *_benchmarks(run),
        Section("Limits", list(_limits(run)), [], []),
    ]
    values = {"version": megalm.__version__, "name": markdown(run.name), "sections": map(_escaped, sections)}
    return render("megalm.report", "card.md.jinja", values) + "\n"


def markdown(text: str) -> Markup:
    """Text that stands as it is in Markdown: on one line, with no markup of its own, be it Markdown's or HTML's."""
    line = " ".join(str(printable(text)).split())
    return Markup(_MARKS.sub(r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _escaped(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "facts": [(escape(name), markdown(value)) for name, value in section.facts],
        "heads": [escape(head) for head in section.heads],
        "rows": [[markdown(value) for value in row] for row in section.rows],
    }


def _model(run: RunRecord, lineage: Lineage) -> Iterator[tuple[str, str]]:
    yield "kind and size", summary.model_of(run)
    if run.parsed:
        model = run.parsed.model
        yield "heads", f"{model.num_attention_heads}, {model.query_groups} of keys and values"
        yield "context", f"{model.max_sequence_length:,} tokens"
        yield "vocabulary", f"{model.vocab_size:,} tokens" if model.vocab_size else UNKNOWN
        yield "parts", f"{model.position_embedding} positions, {model.normalization}, {model.activation}"
    yield (
        "weights from",
        " ← ".join(one.path for one in lineage.ancestors)
        or ("drawn at random" if lineage.version else UNKNOWN),
    )
    yield "tokenizer, SHA-256", lineage.tokenizer or UNKNOWN
    yield "configuration, SHA-256", lineage.digest or UNKNOWN
    yield (
        "trained with",
        f"megalm {lineage.version}, code {lineage.code or UNKNOWN}" if lineage.version else UNKNOWN,
    )
    yield "authors", UNKNOWN
    yield "licence", UNKNOWN


def _use(run: RunRecord) -> Iterator[tuple[str, str]]:
    purpose = _PURPOSES.get(run.task)
    yield "what it was trained for", f"{purpose} (task {run.task})" if purpose else UNKNOWN
    if run.task == "classify" and run.parsed:
        yield "labels", ", ".join(run.parsed.classify.labels) or UNKNOWN
    yield "intended users", UNKNOWN
    yield "uses out of scope", UNKNOWN


def _training(run: RunRecord) -> Iterator[tuple[str, str]]:
    shown = ("a step", "optimizer", "engine and layout", "device", "progress", "tokens", "skipped steps")
    facts = {fact.name: fact.values[0] for fact in summary.facts_of([run])}
    yield from ((name, facts[name]) for name in shown)
    seconds = summary.time_of(run)
    yield "time of the steps", duration(seconds) if seconds else UNKNOWN
    if run.parsed and run.task not in RL_TASKS and (series := run.figures.training.get("tokens")):
        flops = run.parsed.model.flops_per_token(run.parsed.batch.seq_length) * (series.last() or (0, 0.0))[1]
        yield "computation", f"{short(flops / 1e12)} TFLOP (of the model, without recomputing)"
    yield "energy and emissions", UNKNOWN


def _evaluation(run: RunRecord) -> Iterator[tuple[str, str]]:
    if not results_of([run]):
        yield "validation", UNKNOWN
    scores = scores_of([run])
    measured = [topic for topic, _ in scores.by_topic] if scores else []
    yield from ((topic.lower(), UNKNOWN) for topic in TOPICS if topic not in measured)


def _figures(run: RunRecord) -> list[list[str]]:
    found = [(row.name, row.results[0]) for row in results_of([run])]
    return [
        [name, f"{it.first:.4g}", f"{it.last:.4g}", counted(it.step), it.note] for name, it in found if it
    ]


def _benchmarks(run: RunRecord) -> Iterator[Section]:
    """What `megalm eval` found of the last checkpoint that it was given."""
    if (scores := scores_of([run])) is None:
        return
    column = scores.columns[-1]
    heads = ["task", "metric", "score", "95% interval", "chance", "questions"]
    for topic, of_topic in scores.by_topic:
        rows = [
            [
                row.task,
                row.metric,
                cell.score,
                cell.interval or "–",
                row.chance or "–",
                str(row.questions or ""),
            ]
            for row in of_topic
            if (cell := row.cells[-1])
        ]
        facts = [("of checkpoint", column.folder.name), ("intervals", "bootstrap over the questions")]
        facts += [("numerics", column.dtype)] if column.dtype else []
        if rows:
            yield Section(topic, facts, heads, rows)


def _limits(run: RunRecord) -> Iterator[tuple[str, str]]:
    if run.parsed:
        yield (
            "length",
            f"it has learned nothing about texts of more than {run.parsed.batch.seq_length:,} tokens",
        )
        if run.figures.last_step < run.parsed.train.steps:
            yield "unfinished", f"{summary.progress_of(run)} were made"
    measured = bool(results_of([run]))
    yield (
        "held-out data",
        f"{'nothing but the validation above' if measured else 'nothing'} is recorded of them",
    )
    notices = notices_of([run])[0]
    for event in notices.troubles.rows:
        yield f"step {event.step}", event.text
    for damage in notices.damage:
        yield "unreadable", damage
    yield "known harms, and what was done about them", UNKNOWN
