"""Figures derived from what steps counted by group: shares, associations, removal rates, each with its uncertainty."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from megalm.corpus.bias.representation import (
    BETWEEN,
    DOCUMENTS,
    MENTIONS,
    PAIR_DOCUMENTS,
    PAIR_SENTENCES,
    SENTENCES,
)
from megalm.corpus.bias.scan import EVERY
from megalm.corpus.bias.statistics import (
    Estimate,
    Ratio,
    discoveries,
    mutual_information,
    odds_ratio,
    relative_risk,
    share,
)
from megalm.corpus.bias.terms import ATTRIBUTE, DEROGATORY, PROFESSION, axis_of
from megalm.corpus.step import GROUPS_IN, GROUPS_REMOVED

Figures = dict[str, Any]
_WORDS = (PROFESSION, ATTRIBUTE, DEROGATORY)
_DIGITS = 6
ALL_STEPS = "all steps"
"""The entry of removals by group that adds all steps up."""


def figures_by_group(steps: Sequence[dict[str, Any]]) -> Figures:
    """`removal_by_group` and `representation`, each where the recipe asked for it."""
    asked = {
        "removal_by_group": any(GROUPS_IN in step["tables"] for step in steps),
        "representation": any(MENTIONS in step["tables"] for step in steps),
    }
    made = {"removal_by_group": removal_by_group, "representation": representation}
    return {name: made[name](steps) for name, wanted in asked.items() if wanted}


def removal_by_group(steps: Sequence[dict[str, Any]]) -> list[Figures]:
    """For each step that removed documents: the rate of removal of those that mention a group.

    `steps` are tallies as `Tally.to_json` gives them. `ratio` is the group's rate over that of all documents looked at.
    `relative_risk` (statistics.relative_risk) compares it with the documents that mention other groups of its axis and not this one,
    because long documents mention more of everything; an axis as a whole (gender) is compared with those that mention no
    group of it. `others_in` and `others_removed` count the compared. `significant` says that the difference is to be believed among all rows of the result (statistics.discoveries). Where several steps removed documents,
    a last entry ALL_STEPS adds them up: each document counts once, with the groups it had where it was removed or in the end.
    """
    counted = [step for step in steps if GROUPS_IN in step["tables"]]
    removing = [step for step in counted if GROUPS_REMOVED in step["tables"]]
    found = [_removals(step) for step in removing]
    if len(removing) > 1:
        found.append(_removals(_all_steps(counted)))
    _mark_significant([row for step in found for row in step["groups"]])
    return found


def representation(steps: Sequence[dict[str, Any]]) -> list[Figures]:
    """What each step `representation` counted, as shares and associations.

    `steps` are tallies as `Tally.to_json` gives them. Associations are over the sentences that mention any group of the
    axis: the odds of the word in those with the group against those without it (statistics.odds_ratio), and the pointwise
    mutual information of group and word (statistics.mutual_information, None where they never meet).
    """
    return [_representation(step) for step in steps if MENTIONS in step["tables"]]


def _removals(step: dict[str, Any]) -> Figures:
    came, went = step["tables"][GROUPS_IN], step["tables"][GROUPS_REMOVED]
    total, removed = came[EVERY], went[EVERY]
    rows = [_removal_row(label, came, went) for label in came if label != EVERY]
    return {
        "stage": step.get("stage", ""),
        "step": step["step"],
        "documents_in": total,
        "removed": removed,
        "rate": _rounded(removed / total),
        "groups": rows,
    }


def _all_steps(counted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A tally of all steps as one: every document that was removed anywhere or stayed in the last."""
    went: Counter[str] = Counter()
    for step in counted:
        went.update(step["tables"].get(GROUPS_REMOVED, {}))
    last = counted[-1]["tables"]
    came = went + Counter(last[GROUPS_IN])
    came.subtract(last.get(GROUPS_REMOVED, {}))
    return {"step": ALL_STEPS, "tables": {GROUPS_IN: dict(sorted(came.items())), GROUPS_REMOVED: went}}


def _removal_row(label: str, came: dict[str, int], went: dict[str, int]) -> Figures:
    count, removed = came[label], went.get(label, 0)
    around = axis_of(label) if "." in label else EVERY
    others, others_removed = came[around] - count, went.get(around, 0) - removed
    rate = share(removed, count)
    risk = relative_risk(removed, count, others_removed, others) if others else None
    return {
        "group": label,
        "documents_in": count,
        "removed": removed,
        **_named(rate, "rate", "low", "high"),
        "ratio": _rounded(rate.value * came[EVERY] / went[EVERY]),
        "others_in": others,
        "others_removed": others_removed,
        **_named(risk, "relative_risk", "relative_risk_low", "relative_risk_high", "p"),
    }


def _representation(step: dict[str, Any]) -> Figures:
    tables, counters = step["tables"], step["counters"]
    rows = [_mention_row(label, tables, counters) for label in tables[MENTIONS]]
    return {
        "stage": step.get("stage", ""),
        "documents": counters.get("documents", 0),
        "documents_in_other_languages": counters.get("documents.other_language", 0),
        "words": counters.get("words", 0),
        "sentences": counters.get("sentences", 0),
        "groups": [row for row in rows if row["axis"] not in _WORDS],
        "words_of": [row for row in rows if row["axis"] in _WORDS],
        "associations": _associations(tables),
    }


def _mention_row(label: str, tables: dict[str, dict[str, int]], counters: dict[str, int]) -> Figures:
    axis, mentions = axis_of(label), tables[MENTIONS]
    of_axis = sum(count for other, count in mentions.items() if axis_of(other) == axis)
    return {
        "group": label,
        "axis": axis,
        "mentions": mentions[label],
        "documents": tables[DOCUMENTS][label],
        **_named(share(tables[DOCUMENTS][label], counters["documents"]), "share", "low", "high"),
        "share_of_axis": _rounded(mentions[label] / of_axis),
        "per_million_words": _rounded(mentions[label] / counters["words"] * 1e6),
    }


def _associations(tables: dict[str, dict[str, int]]) -> list[Figures]:
    """A row for each group and each word that stands beside any group of its axis, strongest first."""
    sentences, pairs = tables.get(SENTENCES, {}), tables.get(PAIR_SENTENCES, {})
    groups: dict[str, list[str]] = {}
    for label in sentences:
        if "." in label and axis_of(label) not in _WORDS:
            groups.setdefault(axis_of(label), []).append(label)
    found = []
    for pair, beside in pairs.items():
        axis, _, word = pair.partition(BETWEEN)
        if axis in groups and len(groups[axis]) > 1:
            found += [_association(tables, group, axis, word, beside) for group in groups[axis]]
    rows = [row for row in found if row is not None]
    _mark_significant(rows)
    return sorted(rows, key=lambda row: (-_strength(row), row["group"], row["word"]))


def _association(
    tables: dict[str, dict[str, int]], group: str, axis: str, word: str, beside: int
) -> Figures | None:
    """The association of a group and a word that stands in `beside` of the sentences of the axis."""
    sentences, pair = tables[SENTENCES], f"{group}{BETWEEN}{word}"
    together, of_group, total = tables[PAIR_SENTENCES].get(pair, 0), sentences[group], sentences[axis]
    if of_group == total:
        return None
    a, b, c = together, of_group - together, beside - together
    odds = odds_ratio(a, b, c, total - a - b - c)
    return {
        "group": group,
        "word": word,
        "together": together,
        "documents": tables[PAIR_DOCUMENTS].get(pair, 0),
        "expected": _rounded(of_group * beside / total),
        **_named(odds, "odds_ratio", "low", "high", "p"),
        "pmi": _rounded(mutual_information(together, of_group, beside, total)) if together else None,
    }


def _strength(row: Figures) -> float:
    """How far the nearer end of the interval is from 1, as a logarithm; 0 where the interval holds 1."""
    if row["low"] <= 1 <= row["high"]:
        return 0.0
    return min(abs(math.log(max(row[end], 1e-300))) for end in ("low", "high"))


def _mark_significant(rows: list[Figures]) -> None:
    tested = [row for row in rows if row["p"] is not None]
    for row in rows:
        row["significant"] = False
    for row, believed in zip(tested, discoveries([row["p"] for row in tested]), strict=True):
        row["significant"] = believed


def _named(values: Estimate | Ratio | None, *names: str) -> Figures:
    return {name: None if values is None else _rounded(values[i]) for i, name in enumerate(names)}


def _rounded(value: float) -> float:
    """Enough digits for any reader, and the same ones on every machine."""
    return float(f"{value:.{_DIGITS}g}")
