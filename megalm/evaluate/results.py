"""What an evaluation found: as JSON, a file that grows by tasks, and as a table."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megalm import atomic
from megalm.evaluate.ask import Asked
from megalm.evaluate.bootstrap import Score
from megalm.evaluate.compare import Change
from megalm.evaluate.files import FILE_NAME, file_name_of
from megalm.evaluate.kinds import PII_KINDS
from megalm.evaluate.question import Question
from megalm.evaluate.request import Prepared
from megalm.evaluate.scoring import chance_of, scores
from megalm.evaluate.task import Average, Member, Task

Entry = dict[str, Any]


def entry_of(prepared: Prepared, asked: Asked, found: Mapping[str, Score], seed: int) -> Entry:
    """A task's part of the results: each metric's value and interval, what guessing scores, counts, and groups apart.

    found: of `scores_of`.
    """
    task, questions = prepared.task, prepared.questions
    main = task.metrics[0]
    entry: Entry = {
        "kind": task.kind,
        "questions": len(questions),
        "questions_hash": _hash(prepared),
        "seed": seed,
        "few_shot": prepared.shots,
        "main": task.main,
        "chance": chance_of(task, questions, main),
        "truncated": asked.truncated,
        "metrics": {name: score.told() for name, score in found.items()},
    }
    if task.parts:
        entry["parts"] = list(task.parts)
    if task.kind == "pii":
        entry["counts"] = {kind: int(sum(one[kind] for one in asked.figures)) for kind in PII_KINDS}
    if task.group_by is not None:
        entry["groups"] = _groups(task, questions, asked, seed)
    return entry


def scores_of(prepared: Prepared, asked: Asked, seed: int) -> dict[str, Score]:
    """Each of the task's metrics over all of its questions."""
    return scores(prepared.task, prepared.questions, asked.figures, _texts(asked), seed)


def _hash(prepared: Prepared) -> str:
    """The same wherever their files lie; another for another judge of the answers."""
    told = [
        (
            (one.prompts, one.options, one.gold, one.references, one.tests, one.entry_point, one.group),
            (one.part, one.marks, one.ids),
        )
        for one in prepared.questions
    ]
    judge = prepared.judge.mark if prepared.judge else None
    return hashlib.sha256(repr((told, judge)).encode()).hexdigest()


def _groups(task: Task, questions: Sequence[Question], asked: Asked, seed: int) -> Entry:
    """By the group's name its score in the task's first metric, and all of its metrics."""
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(str(question.group), []).append(place)
    texts = _texts(asked)
    found = {}
    for group, own in places.items():
        chosen = [questions[i] for i in own]
        score = scores(task, chosen, [asked.figures[i] for i in own], [texts[i] for i in own], seed)
        told = {name: one.told() for name, one in score.items()}
        found[group] = {"questions": len(own), **told.get(task.main, {}), "metrics": told}
    return found


def _texts(asked: Asked) -> list[Any]:
    """The first text written to each question."""
    return [answer[0] if isinstance(answer, list) else answer for answer in asked.answers]


def average_of(
    average: Average, members: Sequence[tuple[Member, str]], entries: Mapping[str, Entry]
) -> Entry:
    """The mean of the members' centred scores; its interval takes their errors to be independent."""
    told, squares = {}, 0.0
    for member, label in members:
        entry = entries[label]
        score = entry["metrics"][member.metric or entry["main"]]
        chance = member.chance if member.chance is not None else entry["chance"] or 0.0
        told[label] = {
            "score": score["value"],
            "chance": chance,
            "centred": (score["value"] - chance) / (1 - chance),
        }
        if score["low"] is not None:
            squares += ((score["high"] - score["low"]) / 2 / (1 - chance)) ** 2
    value = sum(one["centred"] for one in told.values()) / len(told)
    half = math.sqrt(squares) / len(told)
    return {"tasks": told, **Score(value, value - half, value + half).told()}


def write_results(folder: Path, results: Entry) -> Entry:
    """Write `results.json`, keeping what it holds of the same model's other tasks; returns all of it."""
    path = folder / FILE_NAME
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            if before["model"]["fingerprint"] == results["model"]["fingerprint"]:
                for name in ("tasks", "averages"):
                    results = results | {name: before[name] | results[name]}
        except (ValueError, KeyError, TypeError):
            pass  # of another program, or damaged: what is new takes its place
    atomic.write_text(path, json.dumps(results, indent=1) + "\n")
    return results


def write_samples(folder: Path, prepared: Prepared, asked: Asked) -> None:
    """A line of each question: where it comes from, what was answered, what that scored."""
    lines = [
        json.dumps(
            {"question": question.where, **_part(question), "answer": answer, "figures": figures},
            ensure_ascii=False,
        )
        for question, answer, figures in zip(prepared.questions, asked.answers, asked.figures, strict=True)
    ]
    atomic.write_text(
        folder / "samples" / f"{file_name_of(prepared.label)}.jsonl", "".join(f"{line}\n" for line in lines)
    )


def _part(question: Question) -> dict[str, str]:
    return {} if question.part is None else {"part": question.part}


def render(results: Entry) -> str:
    """The table that people read."""
    table = Table("task", "metric")
    for heading in ("score", "95% interval", "chance", "questions", "shots"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, entry in results["tasks"].items():
        for name, score in entry["metrics"].items():
            table.add_row(
                label if name == entry["main"] else "",
                name,
                _number(score["value"]),
                _interval(score),
                _chance(entry, score) if name == entry["main"] else "",
                str(entry["questions"]) if name == entry["main"] else "",
                str(entry["few_shot"]) if name == entry["main"] else "",
            )
    for name, entry in results["averages"].items():
        count = f"{len(entry['tasks'])} tasks"
        table.add_row(name, "centred", _number(entry["value"]), _interval(entry), "0", count, "")
    return _printed(table)


def render_changes(found: Sequence[Change]) -> str:
    """The table of what each score gained or lost; `!`: the interval leaves 0 out."""
    table = Table("task", "metric")
    for heading in ("before", "after", "change", "95% interval", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        span = "" if one.low is None else f"{one.low:+.4f} ... {one.high:+.4f}"
        verdict = {True: "! gain", False: "! loss", None: "!" if one.is_significant else ""}[one.is_better]
        change = f"{one.difference:+.4f}"
        table.add_row(one.task, one.metric, _number(one.before), _number(one.after), change, span, verdict)
    return _printed(table)


def _chance(entry: Entry, score: Entry) -> str:
    """What guessing scores; `~` where the score's interval holds it."""
    chance = entry["chance"]
    if chance is None:
        return ""
    within = score["low"] is not None and score["low"] <= chance <= score["high"]
    return f"{'~ ' if within else ''}{_number(chance)}"


def _printed(table: Table) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _interval(score: Entry) -> str:
    return "" if score["low"] is None else f"{_number(score['low'])} ... {_number(score['high'])}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.5g}"
