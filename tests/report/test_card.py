"""The model card: what was recorded, `not recorded` for the rest, and nothing that is markup."""

import json

import pytest

from megalm.report.card import markdown, write_card
from megalm.report.run import read_runs
from tests.report.runs import start_line, step_line, write_run


def facts(card):
    """Facts by section and name."""
    found, section = {}, ""
    for line in card.splitlines():
        if line.startswith("## "):
            section = line[3:]
        if line.startswith("- **"):
            name, _, value = line[4:].partition("**: ")
            found[section, name] = value
    return found


def card_of(directory):
    return write_card(read_runs([directory])[0])


def test_card_says_what_was_recorded_and_where_nothing_was(tmp_path):
    directory = write_run(
        tmp_path / "run",
        start_line(device="one GPU"),
        *map(step_line, range(1, 5)),
        {"step": 2, "valid_loss": 3.0},
        {"step": 4, "valid_loss": 2.5},
        {"step": 4, "event": "alarm: answers grow"},
        lineage=json.dumps({"megalm": "9.9", "config": "c0ffee", "data": {"books": "ab12"}, "shares": [1.0]}),
        config={"train": {"steps": 8}, "batch": {"seq_length": 64}},
    )
    card = card_of(directory)
    found = facts(card)
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == [
        *("Model", "Intended use", "Training data", "Training", "Evaluation", "Limits")
    ]
    assert found["Model", "configuration, SHA-256"] == "c0ffee"
    assert found["Model", "weights from"] == "drawn at random"
    assert found["Training", "device"] == "one GPU" and found["Training", "tokens"] == "256"
    assert found["Training", "progress"] == "4 of 8 steps" and "unfinished" in card
    assert "| loss | 3 | 2.5 | 4 |" in card and "| books | training | this run | 100.0% |" in card
    assert found["Limits", "step 4"] == "alarm: answers grow"
    assert "more than 64 tokens" in found["Limits", "length"]
    unknown = {name for (_, name), value in found.items() if value == "not recorded"}
    assert {
        "licence",
        "authors",
        "intended users",
        "benchmarks",
        "bias",
        "safety",
        "personal data",
    } <= unknown


def test_card_of_a_run_with_nothing_but_its_name_claims_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    found = facts(card_of(tmp_path / "run"))
    for name in ("kind and size", "weights from", "tokenizer, SHA-256", "trained with"):
        assert found["Model", name] == "not recorded"
    assert found["Evaluation", "validation"] == "not recorded"
    assert found["Training data", "token files"] == "not recorded"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b|c `x` [l](u)", r"a\_b\|c \`x\` \[l\](u)"),
        ("<script>&", "&lt;script&gt;&amp;"),
        ("# no\nheading\n\n- none", "# no heading - none"),
        ("2.5e-05", "2.5e-05"),
    ],
)
def test_text_stays_as_it_is_in_markdown(text, written):
    assert markdown(text) == written


def test_hostile_names_are_on_one_line_without_markup(tmp_path):
    hostile = "x\n## Evaluation\n| a |<script>alert(1)</script>[l](javascript:alert(1))"
    directory = write_run(
        tmp_path / "run",
        start_line(device=hostile),
        {"step": 1, f"valid_{hostile}": 1.0},
        lineage=json.dumps({"data": {hostile: hostile}, "parent": hostile}),
    )
    card = card_of(directory)
    assert card.count("\n## Evaluation") == 1 and "<" not in card and "](" not in card.replace("\\](", "")
