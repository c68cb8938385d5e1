"""The steps in recipes: hand-counted figures, the same for any dealing out; what is removed, added and replaced."""

import json

import pytest
from typer.testing import CliRunner

from megalm.cli import app
from megalm.corpus.bias.balance import chance, kept_shares
from megalm.corpus.bias.filter import RepresentationFilter
from megalm.corpus.build import build_corpus
from megalm.corpus.recipe import parse_recipe
from megalm.corpus.shards import read_shard, shard_paths
from megalm.errors import UserError
from tests.corpus.documents import reason_of
from tests.corpus.recipes import documents_of

TEXTS = [
    "She is a nurse. She met a lawyer.",
    "He is a lawyer! He sings. The nurse sleeps.",
    "The nurse sees her. An Indian nurse.",
    "He is a doctor and his friend is a doctor.",
    "Nobody is here.",
    "Sie ist hier.",
] * 3
TOGETHER = {
    "gender.female|profession.nurse": 6,
    "gender.female|profession.lawyer": 3,
    "gender.male|profession.lawyer": 3,
}


@pytest.fixture
def inputs(tmp_path):
    lines = [
        json.dumps({"id": f"d{n}", "text": text} | ({"language": "de"} if text.startswith("Sie") else {}))
        for n, text in enumerate(TEXTS)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "in.jsonl"


def build(inputs, output, steps, tasks=1, **keys):
    recipe = {"output": str(output), "tasks": tasks, "executor": {"workers": 1}, "steps": steps}
    report = build_corpus(parse_recipe(recipe | {"sources": [{"kind": "jsonl", "path": str(inputs)}]} | keys))
    return report, [d for path in shard_paths(output / "documents") for d in read_shard(path)]


def test_counts_are_those_of_a_hand(inputs, tmp_path):
    report, documents = build(inputs, tmp_path / "out", ["representation"])
    assert len(documents) == 18
    (step,) = report["steps"]
    counters, tables = step["counters"], step["tables"]
    assert counters == {"documents": 15, "documents.other_language": 3, "sentences": 27, "words": 111}
    assert {
        name: tables["mentions"][name] for name in ("gender.female", "gender.male", "profession.nurse")
    } == {
        "gender.female": 9,
        "gender.male": 12,
        "profession.nurse": 12,
    }
    assert tables["documents"]["gender.female"] == 6 and tables["documents"]["gender"] == 12
    assert tables["sentences"]["gender"] == 18 and tables["sentences"]["profession.doctor"] == 3
    assert {pair: tables["pairs.sentences"][pair] for pair in TOGETHER} == TOGETHER
    (figures,) = report["representation"]
    female = next(row for row in figures["groups"] if row["group"] == "gender.female")
    assert (female["share"], female["share_of_axis"]) == (0.4, round(9 / 21, 6))
    assert female["per_million_words"] == 81081.1
    rows = {(row["group"], row["word"]): row for row in figures["associations"]}
    nurse = rows["gender.female", "profession.nurse"]
    assert (nurse["together"], nurse["documents"], nurse["expected"]) == (6, 6, 3.0)
    assert nurse["pmi"] == 1.0 and nurse["low"] < nurse["odds_ratio"] < nurse["high"]
    assert nurse["odds_ratio"] == pytest.approx((6.5 / 3.5) / (0.5 / 9.5), rel=1e-5)
    assert rows["gender.male", "profession.nurse"]["pmi"] is None
    lawyer = rows["gender.female", "profession.lawyer"]  # 3 of 9 sentences, 3 of the other 9
    assert (lawyer["together"], lawyer["odds_ratio"], lawyer["pmi"]) == (3, 1.0, 0.0)


def without_seconds(report):
    steps = [{**step, "seconds": 0} for step in report["steps"]]
    return steps, report["removal_by_group"], report["representation"]


def test_any_dealing_out_gives_the_same_report(inputs, tmp_path):
    steps = ["representation", {"length": {"min_characters": 30}}, {"counterfactual": {"rate": 0.5}}]
    reports = []
    for tasks in (1, 3, 7):
        report, _ = build(inputs, tmp_path / str(tasks), steps, tasks, removal_by_group=True, task_bytes=1)
        reports.append(without_seconds(report))
    assert reports[0] == reports[1] == reports[2]


def test_removal_rates_by_group_are_those_of_a_hand(inputs, tmp_path):
    steps = ["normalize", {"length": {"min_characters": 35}}, {"length": {"min_characters": 40}}]
    report, documents = build(inputs, tmp_path / "out", steps, removal_by_group=True)
    assert (
        len(documents) == 6
    )  # of the six texts 1 and 3 stay, 2 falls to the second step, 0, 4 and 5 to the first
    first, second, every = report["removal_by_group"]
    assert (first["step"], first["documents_in"], first["removed"]) == ("length", 15, 6)
    assert (second["documents_in"], second["removed"]) == (9, 3)
    rows = {row["group"]: row for row in first["groups"]}
    assert "*" not in rows and "gender.female" in rows and "profession.nurse" not in rows
    female = rows["gender.female"]
    assert (female["documents_in"], female["removed"], female["rate"]) == (6, 3, 0.5)
    assert female["ratio"] == 1.25 and (female["others_in"], female["others_removed"]) == (6, 0)  # he alone
    assert female["relative_risk"] == 7.0 and female["relative_risk_low"] < 1  # 3.5 of 7 against 0.5 of 7
    assert (rows["gender"]["documents_in"], rows["gender"]["removed"]) == (12, 3)
    # against 3 of 3: four fifths of one in the cells of the 12, a fifth in those of the 3
    assert rows["gender"]["relative_risk"] == round((3.8 / 13.6) / (3.2 / 3.4), 6)
    assert rows["nationality.indian"]["relative_risk"] is None  # no other nationality
    assert rows["gender.male"]["removed"] == 0 and rows["nationality.indian"]["documents_in"] == 3
    rows = {row["group"]: row for row in every["groups"]}
    assert (every["step"], every["documents_in"], every["removed"]) == ("all steps", 15, 9)
    assert (rows["gender.female"]["documents_in"], rows["gender.female"]["removed"]) == (6, 6)
    assert (rows["gender.male"]["documents_in"], rows["gender.male"]["removed"]) == (6, 0)
    plain, _ = build(inputs, tmp_path / "plain", steps)
    assert "removal_by_group" not in plain and plain["steps"][0]["tables"] == {}


def test_groups_of_raw_text_are_counted_before_a_step_changes_it(inputs, tmp_path):
    report, documents = build(
        inputs,
        tmp_path / "out",
        [{"counterfactual": {"mode": "replace"}}, "representation"],
        removal_by_group=True,
    )
    assert report["steps"][0]["tables"]["groups.in"]["pronoun.she"] == 6
    assert report["steps"][1]["tables"]["groups.in"]["pronoun.she"] == 6  # of six with he
    assert report["steps"][1]["tables"]["mentions"]["gender.female"] == 12
    changed = {d.id: d for d in documents if "counterfactual_of" in d.metadata}
    assert len(changed) == 12 and changed["d0"].text == "He is a nurse. He met a lawyer."
    assert changed["d0"].metadata["counterfactual_of"] == "d0"


def test_copies_follow_their_originals_and_are_counted(inputs, tmp_path):
    report, documents = build(inputs, tmp_path / "out", ["counterfactual", "representation"])
    (step, after) = report["steps"]
    assert (
        step["documents_in"] + step["counters"]["added"] == step["documents_out"] == 30 == report["documents"]
    )
    assert [d.id for d in documents[:3]] == ["d0", "d0/counterfactual", "d1"]
    assert documents[0].text == TEXTS[0] and "counterfactual_of" not in documents[0].metadata
    assert documents[1].text == "He is a nurse. He met a lawyer."
    assert documents[1].metadata["counterfactual_of"] == "d0"
    mentions = after["tables"]["mentions"]
    assert mentions["gender.female"] == mentions["gender.male"] == 21


@pytest.mark.parametrize("mode", ["add", "replace"])
def test_a_rate_picks_documents_by_their_ids(inputs, tmp_path, mode):
    _, documents = build(inputs, tmp_path / "out", [{"counterfactual": {"rate": 0.5, "mode": mode}}])
    made = {d.metadata["counterfactual_of"] for d in documents if "counterfactual_of" in d.metadata}
    eligible = {f"d{n}" for n, text in enumerate(TEXTS) if text[:2] in ("Sh", "He", "Th")}
    assert made == {id for id in eligible if chance(id) < 0.5} and 0 < len(made) < len(eligible)


def test_later_changes_of_the_original_do_not_reach_the_copy(inputs, tmp_path):
    _, documents = build(inputs, tmp_path / "out", ["counterfactual", {"normalize": {"lower_case": True}}])
    assert documents[1].text == "he is a nurse. he met a lawyer."


@pytest.mark.parametrize(
    ("text", "limits", "reason"),
    [
        ("word " * 98 + "bitch slut", {}, "derogatory"),
        ("word " * 99 + "bitch", {}, None),
        ("word " * 99 + "bitch", {"derogatory.women": 0}, "derogatory.women"),
        ("word " * 99 + "bitch", {"derogatory.gay": 0}, None),
        ("He and he and he", {"gender.male": 0.5}, "gender.male"),
    ],
)
def test_documents_with_too_great_a_share_are_removed(text, limits, reason):
    step = RepresentationFilter(RepresentationFilter.Settings(**({"max_share": limits} if limits else {})))
    step.start()
    assert reason_of(step, text) == (reason and f"representation_filter.{reason}")
    assert reason_of(step, text, language="fr") is None


def test_an_unknown_label_names_the_nearest():
    step = RepresentationFilter(RepresentationFilter.Settings(max_share={"gender.femal": 0.1}))
    with pytest.raises(UserError, match="no `gender.femal`: did you mean 'gender.female'"):
        step.start()


def test_a_part_of_nothing_is_refused(inputs, tmp_path):
    steps = [{"representation_balance": {"ratio": {"gender.male": 0, "gender.female": 1}}}]
    with pytest.raises(UserError, match=r"the part of gender.male is 0.0; give a number above 0"):
        build(inputs, tmp_path / "out", steps)


def test_kept_shares_meet_the_ratio_to_the_scarcest():
    counts = {"a": 100, "b": 400, "c": 50}
    assert kept_shares(counts, {"a": 1, "b": 1}, 0) == {"a": 1, "b": 0.25}
    assert kept_shares(counts, {"a": 1, "b": 2, "c": 1}, 0) == {"a": 0.5, "b": 0.25, "c": 1}
    assert kept_shares(counts, {"a": 1, "b": 1}, 0.5) == {"a": 1, "b": 0.5}
    assert kept_shares({"b": 9}, {"a": 1, "b": 1}, 0) == {"a": 1, "b": 1}


def test_over_represented_groups_lose_documents_whatever_the_tasks(tmp_path):
    lines = [json.dumps({"id": f"d{n}", "text": "He sings." if n % 5 else "She sings."}) for n in range(1000)]
    lines += [
        json.dumps({"id": f"x{n}", "text": text}) for n, text in enumerate(["He and she.", "It rains."])
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    steps = [{"representation_balance": {"ratio": {"gender.male": 1.5, "gender.female": 1}}}]
    kept = []
    for tasks in (1, 4):
        report, documents = build(tmp_path / "in.jsonl", tmp_path / str(tasks), steps, tasks)
        kept.append({d.id for d in documents})
        assert set(report["steps"][0]["removed"]) == {"representation_balance.gender.male"}
    assert kept[0] == kept[1]
    assert {f"d{n}" for n in range(0, 1000, 5)} | {"x0", "x1"} <= kept[0]
    assert len(kept[0]) - 202 == pytest.approx(300, abs=45)  # three standard deviations


def test_going_on_after_own_lists_changed_is_refused(inputs, tmp_path):
    terms = tmp_path / "own.yaml"
    terms.write_text("groups: {mood: {singing: [sings]}}\n")
    keys = {"removal_by_group": True, "group_terms": str(terms)}
    report, _ = build(inputs, tmp_path / "out", [{"length": {"min_characters": 40}}], **keys)
    assert report["steps"][0]["tables"]["groups.in"]["mood.singing"] == 3
    terms.write_text("groups: {mood: {singing: [sings, sing]}}\n")
    with pytest.raises(UserError, match="own.yaml has changed since"):
        build(inputs, tmp_path / "out", [{"length": {"min_characters": 40}}], **keys)


def test_the_command_line_shows_what_the_report_holds(inputs, tmp_path):
    out = tmp_path / "out"
    steps = ["representation", {"length": {"min_characters": 35}}]
    report, _ = build(inputs, out, steps, removal_by_group=True)
    runner = CliRunner()
    shown = runner.invoke(app, ["corpus", "bias", str(inputs), "--json"])
    figures = json.loads(shown.stdout)
    expected = {**report["representation"][0], "stage": ""}
    assert figures == expected
    shown = runner.invoke(app, ["corpus", "bias", str(out)])
    assert (
        "9 documents, 18 sentences" in shown.stdout
        and "length: 6 of 15 documents removed (40.0%)" in shown.stdout
    )
    again = json.loads(runner.invoke(app, ["corpus", "bias", str(out), "--json"]).stdout)
    assert again["removal_by_group"] == report["removal_by_group"]
    assert documents_of(out)  # the command changes nothing
