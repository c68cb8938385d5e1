"""What is exported: with consent, masked, once, as most said, in shapes that the data sets' own commands read."""

import json
import random
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalm.cli import main
from megalm.errors import UserError
from megalm.feedback.conversations import change_conversation
from megalm.feedback.export import ExportSettings, export_file, export_lines, side_of
from megalm.feedback.forms import PAIRS_OF_A_PROMPT, Form
from megalm.feedback.material import Source
from megalm.feedback.opinions import Place, compare, edit, rate
from megalm.feedback.store import Store
from megalm.feedback.votes import Cases, Opinion, Tally
from tests.chats import make_tokenizer
from tests.feedback.small import ANN, BOB, open_store, say, user
from tests.preferences import preference_run
from tests.train.runs import step_lines, train_in_world


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def exported(
    store: Store, folder: Path, form: Form, **more: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records, and what is recorded of them."""
    path = folder / f"{form}.jsonl"
    made = export_file(store, path, ExportSettings(form, **more), overwrite=True)
    return lines_of(path), made["train"]


def fill(store: Store) -> None:
    """One of each kind."""
    talk = [*user("Hands?"), {"role": "assistant", "content": "Ten."}, *user("Really?")]
    say(store, "r1", "Hands?", ["Two.", "Ten."])
    rate(store, ANN, Place("r1", 0), 1)
    rate(store, ANN, Place("r1", 1), -1)
    say(store, "r2", talk, "No, ten.")
    rate(store, ANN, Place("r2", 0), 1)
    edit(store, ANN, Place("r2", 0), "No, two: write to ann@example.org.")
    say(store, "r3", "Feet?", ["Two feet.", "Many."], who=BOB)
    compare(store, BOB, Place("r3", 1), Place("r3", 0), "b")
    say(store, "r4", "Heads?", ["None.", "One."], conversation="secret", consent=False)
    compare(store, ANN, Place("r4", 1), Place("r4", 0), "a")
    rate(store, ANN, Place("r4", 1), 1)


def test_examples_are_what_was_liked_and_edits_win(store: Store, tmp_path: Path) -> None:
    fill(store)
    records, record = exported(store, tmp_path, "sft")
    talk = [*user("Hands?"), {"role": "assistant", "content": "Ten.", "weight": 0}, *user("Really?")]
    assert records == [
        {"messages": [*talk, {"role": "assistant", "content": "No, two: write to <EMAIL>."}]},
        {"messages": [*user("Hands?"), {"role": "assistant", "content": "Two."}]},
    ]
    assert record["sources"] == {"edits": 1, "ratings": 1} and record["masked"] == {"email": 1}
    assert record["dropped"] == {"edited": 1, "rated_down": 1}
    assert record["conversations_without_consent"] == 1


def test_pairs_come_from_comparisons_edits_and_ratings(store: Store, tmp_path: Path) -> None:
    fill(store)
    records, record = exported(store, tmp_path, "preference")
    talk = [*user("Hands?"), {"role": "assistant", "content": "Ten."}, *user("Really?")]
    assert records == [
        {"prompt": user("Feet?"), "chosen": "Two feet.", "rejected": "Many."},
        {"prompt": talk, "chosen": "No, two: write to <EMAIL>.", "rejected": "No, ten."},
        {"prompt": user("Hands?"), "chosen": "Two.", "rejected": "Ten."},
    ]
    assert record["sources"] == {"comparisons": 1, "edits": 1, "ratings": 1}
    assert record["dropped"] == {"unpaired": 1}


def test_verdicts_are_ratings_and_edits(store: Store, tmp_path: Path) -> None:
    fill(store)
    records, _ = exported(store, tmp_path, "kto")
    assert [(record["completion"], record["label"]) for record in records] == [
        ("No, two: write to <EMAIL>.", True),
        ("Two.", True),
        ("Ten.", False),
        ("No, ten.", True),
    ]
    assert all(set(record) == {"prompt", "completion", "label"} for record in records)


def test_nothing_goes_without_consent_or_to_others(store: Store, tmp_path: Path) -> None:
    fill(store)
    assert "Heads" not in export_lines(store, "kto", ANN) and "Feet" not in export_lines(
        store, "preference", ANN
    )
    assert "Feet" in export_lines(store, "preference", BOB)
    change_conversation(store, ANN, "secret", consent=True)
    assert "Heads" in export_lines(store, "kto", ANN)
    for name in ("secret", "talk"):
        change_conversation(store, ANN, name, consent=False)
    assert export_lines(store, "kto", ANN) == ""
    change_conversation(store, BOB, "talk", consent=False)
    with pytest.raises(UserError, match="0 answers with consent, 3 conversations without"):
        exported(store, tmp_path, "sft")


def test_copies_count_once_and_contradictions_go_by_majority(store: Store, tmp_path: Path) -> None:
    votes = {"yes": (1, 1, -1, 1), "no": (1, -1), "bad": (-1, -1)}
    spelled = ("Really?", " really?\n", "REALLY?", "Really?")
    for text, values in votes.items():
        for number, value in enumerate(values):
            say(store, f"{text}{number}", spelled[number], text.upper() if number else text)
            rate(store, ANN, Place(f"{text}{number}", 0), value)
    for question, picks in (("Which?", "aba"), ("What?", ("a", "b", "tie", "neither"))):
        for number, pick in enumerate(picks):
            say(store, f"{question[:4]}{number}", question, ["c", "d"])
            compare(
                store, ANN, Place(f"{question[:4]}{number}", 0), Place(f"{question[:4]}{number}", 1), pick
            )  # type: ignore[arg-type]
    records, record = exported(store, tmp_path, "kto")
    assert records == [
        {"prompt": user("Really?"), "completion": "yes", "label": True},
        {"prompt": user("Really?"), "completion": "bad", "label": False},
    ]
    assert record["dropped"] == {"contradiction": 2, "copy": 3, "outvoted": 1}
    records, record = exported(store, tmp_path, "preference")
    assert records == [
        {"prompt": user("Which?"), "chosen": "c", "rejected": "d"},
        {"prompt": user("Really?"), "chosen": "yes", "rejected": "bad"},
    ]
    assert record["sources"] == {"comparisons": 1, "ratings": 1}
    assert {name: record["dropped"][name] for name in ("tie", "neither")} == {"tie": 1, "neither": 1}


def test_answers_that_break_off_are_not_learned(store: Store, tmp_path: Path) -> None:
    for number, reason in enumerate(("length", "interrupted", "content_filter", "stop")):
        say(store, f"r{number}", f"q{number}", ["good", "bad"], finish_reason=reason)
        rate(store, ANN, Place(f"r{number}", 0), 1)
        rate(store, ANN, Place(f"r{number}", 1), -1)
        compare(store, ANN, Place(f"r{number}", 0), Place(f"r{number}", 1), "a")

    def prompts(form: Form, **more: Any) -> list[str]:
        found, _ = exported(store, tmp_path, form, **more)
        return [record.get("prompt", record.get("messages"))[0]["content"] for record in found]

    assert prompts("sft") == prompts("preference") == ["q3"]
    assert prompts("sft", with_cut=True) == ["q0", "q3"] and prompts("preference", with_cut=True) == [
        "q0",
        "q3",
    ]
    assert prompts("kto") == ["q0", "q1", "q3", "q3"]
    _, record = exported(store, tmp_path, "sft")
    assert record["dropped"] == {"filtered": 2, "rated_down": 3, "unfinished": 2}


def test_what_no_template_could_write_is_dropped(store: Store, tmp_path: Path) -> None:
    say(store, "r1", [*user("a"), *user("b")], "c")
    say(store, "r2", "d", " ")
    say(store, "r3", "e", "f")
    say(store, "r4", "g", "h")
    for number in range(1, 5):
        rate(store, ANN, Place(f"r{number}", 0), 1)
    edit(store, ANN, Place("r4", 0), " H ")
    _, record = exported(store, tmp_path, "kto")
    assert record["dropped"] == {"copy": 1, "empty_answer": 1, "turn_order": 1}
    with pytest.raises(
        UserError, match="dropped: 1 empty_answer, 1 identical_answers, 1 turn_order, 2 unpaired"
    ):
        exported(store, tmp_path, "preference")


def test_one_prompt_gives_a_bounded_number_of_pairs(store: Store, tmp_path: Path) -> None:
    for number in range(12):
        say(store, f"r{number}", "Hello", f"{number}")
        rate(store, ANN, Place(f"r{number}", 0), 1 if number % 2 else -1)
    records, record = exported(store, tmp_path, "preference")
    assert (
        len(records) == PAIRS_OF_A_PROMPT
        and record["dropped"]["pairs_beyond_limit"] == 36 - PAIRS_OF_A_PROMPT
    )
    assert all(int(one["chosen"]) % 2 == 1 - int(one["rejected"]) % 2 for one in records)
    assert len({one["chosen"] for one in records}) == len({one["rejected"] for one in records}) == 6
    assert len({(one["chosen"], one["rejected"]) for one in records}) == PAIRS_OF_A_PROMPT


def test_all_pairs_of_a_prompt_are_given_where_they_are_few(store: Store, tmp_path: Path) -> None:
    for number, value in enumerate((1, 1, 1, -1, -1)):
        for prompt, sign in (("many good", 1), ("many bad", -1)):
            say(store, f"r{number}{sign}", prompt, f"{number}")
            rate(store, ANN, Place(f"r{number}{sign}", 0), sign * value)
    records, record = exported(store, tmp_path, "preference")
    found = {(one["prompt"][0]["content"], one["chosen"], one["rejected"]) for one in records}
    good, bad = "012", "34"
    assert found == {("many good", a, b) for a in good for b in bad} | {
        ("many bad", b, a) for a in good for b in bad
    }
    assert len(records) == 12 and not record["dropped"]


def test_what_clients_write_beside_the_words_stays_in_the_store(store: Store, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hands?", "name": "ann@example.org"}]
    say(store, "r", messages, ["Two.", "Ten."])
    rate(store, ANN, Place("r", 0), 1)
    rate(store, ANN, Place("r", 1), -1)
    for form in ("sft", "preference", "kto"):
        records, _ = exported(store, tmp_path, form)  # type: ignore[arg-type]
        assert "Hands?" in str(records) and "ann" not in str(records)
        assert "ann" not in export_lines(store, form, ANN)  # type: ignore[arg-type]


def test_files_are_for_their_owner_alone(store: Store, tmp_path: Path) -> None:
    fill(store)
    path = tmp_path / "kto.jsonl"
    for target in (path, tmp_path / "kto.held_out.jsonl"):
        target.write_text("")
        target.chmod(0o644)
    export_file(store, path, ExportSettings("kto", held_out=0.01), overwrite=True)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("*.jsonl")}
    assert modes == {"kto.jsonl": 0o600, "kto.held_out.jsonl": 0o600}


def test_held_out_pairs_tell_which_are_of_one_owner_and_conversation_and_not_whose(
    store: Store, tmp_path: Path
) -> None:
    for number in range(24):
        who = (ANN, BOB)[number % 2]
        reply = say(
            store,
            f"r{number}",
            f"q{number}",
            ["a", "b"],
            who=who,
            conversation=f"{who.user_name}{number // 4}",
        )
        compare(store, who, Place(reply, 0), Place(reply, 1), "a")
    path = tmp_path / "pairs.jsonl"
    export_file(store, path, ExportSettings("preference", held_out=0.6))
    assert not any({"owner", "conversation"} & set(record) for record in lines_of(path))
    held_out = lines_of(tmp_path / "pairs.held_out.jsonl")
    groups = {
        (one["conversation"], one["owner"], int(one["prompt"][0]["content"][1:]) // 4) for one in held_out
    }
    assert len({owner for _, owner, _ in groups}) == 2 and 4 <= len(groups) < len(held_out)
    assert len({conversation for conversation, _, _ in groups}) == len(groups)
    assert not any(name in str(held_out) for name in ("ann", "bob"))


def test_a_conversation_stays_on_its_side(store: Store, tmp_path: Path) -> None:
    for number in range(24):
        who = (ANN, BOB)[number % 2]
        for part in range(2):
            reply = f"r{number}-{part}"
            say(
                store, reply, f"question {number} {part}", ["good", "bad"], who=who, conversation=f"c{number}"
            )
            compare(store, who, Place(reply, 0), Place(reply, 1), "a")
        say(store, f"h{number}", "Hello", [f"good {number}", "bad"], who=who, conversation=f"c{number}")
        compare(store, who, Place(f"h{number}", 0), Place(f"h{number}", 1), "a")
    path = tmp_path / "pairs.jsonl"
    made = export_file(store, path, ExportSettings("preference", held_out=0.3))

    def sides(file: Path) -> set[str]:
        return {
            record["prompt"][0]["content"].split()[1]
            for record in lines_of(file)
            if "question" in str(record)
        }

    train, held_out = sides(path), sides(tmp_path / "pairs.held_out.jsonl")
    assert train.isdisjoint(held_out) and len(train | held_out) == 24 and 2 <= len(held_out) <= 14
    assert not any("Hello" in str(record) for record in lines_of(tmp_path / "pairs.held_out.jsonl"))
    assert made["held_out"]["dropped"]["prompt_in_train"] > 0
    assert made["train"]["records"] + made["held_out"]["records"] == 48 + sum(
        "Hello" in str(record) for record in lines_of(path)
    )
    with pytest.raises(UserError, match="exists; choose another file"):
        export_file(store, path, ExportSettings("preference"))
    say(store, "new", "question 99 0", ["good", "bad"], conversation="c99")
    compare(store, ANN, Place("new", 0), Place("new", 1), "a")
    export_file(store, path, ExportSettings("preference", held_out=0.3), overwrite=True)
    assert sides(tmp_path / "pairs.held_out.jsonl") - {"99"} == held_out
    assert side_of(Source("key", "ann", "talk"), 0.0) == "train"


ANSWERS = st.sampled_from(["a", "A ", "b", "c"])


@given(st.lists(st.tuples(ANSWERS, ANSWERS, st.sampled_from([1, -1])), max_size=30), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_majority_does_not_depend_on_order(
    votes: list[tuple[str, str, int]], chance: random.Random
) -> None:
    def outcome(given: list[tuple[str, str, int]]) -> set[tuple[str, ...]]:
        cases = Cases(Tally())
        for a, b, value in given:
            of = Source("key", "ann", "talk")
            cases.take(Opinion(user("?"), (a, b), value, "comparisons", (True, True), (), of))
        return {tuple(text.strip().lower() for text in case.ordered) for case in cases.decided()}

    counts: dict[tuple[str, str], int] = {}
    for a, b, value in votes:
        better, worse = (a, b) if value > 0 else (b, a)
        key = (better.strip().lower(), worse.strip().lower())
        counts[key] = counts.get(key, 0) + 1
    wanted = {(a, b) for (a, b), count in counts.items() if a != b and count > counts.get((b, a), 0)}
    shuffled = list(votes)
    chance.shuffle(shuffled)
    assert outcome(votes) == outcome(shuffled) == wanted


def test_the_data_sets_own_commands_read_every_form(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store)
    for number in range(12):
        reply = f"more{number}"
        say(store, reply, f"How many, {number}?", ["many", "few"])
        compare(store, ANN, Place(reply, 0), Place(reply, 1), "a")
        rate(store, ANN, Place(reply, 0), 1)
        rate(store, ANN, Place(reply, 1), -1)
    make_tokenizer(tmp_path)
    data = [
        "--tokenizer",
        str(tmp_path / "tokenizer"),
        "--chat-template",
        "chatml",
        "--splits",
        "1",
        "--json",
    ]
    counts = {"sft": 14, "preference": 15, "kto": 28}
    for form, count in counts.items():
        file, prefix = str(tmp_path / f"{form}.jsonl"), str(tmp_path / form)
        assert main(["feedback", "export", "--store", str(store.url), "--form", form, "-o", file]) == 0
        assert capsys.readouterr().out.startswith(f"{file}  {count} records of ")
        build = ["build", "--chat", "auto"] if form == "sft" else ["build-preferences"]
        assert main(["dataset", *build, file, "-o", prefix, *data]) == 0
        made = json.loads(capsys.readouterr().out)
        train = made["splits"]["train"] if "splits" in made else made["train"]
        assert train["documents"] == count, made
    short = ("train.steps=6", "train.eval_interval=0", "optimizer.warmup_steps=0", "logging.plot=false")
    free = (
        "data.valid=[]",
        "dpo.reference_free=true",
        "batch.micro_batch_size=8",
        "batch.global_batch_size=8",
    )
    train_in_world(1, preference_run("dpo", tmp_path / "run", tmp_path / "preference", *free, *short))
    first, *_, last = step_lines(tmp_path / "run")
    assert last["loss"] < 0.9 * first["loss"]
    assert (
        main(["lineage", f"{tmp_path}/preference_train"]) == 1
    )  # the checkpoint that is named there is none
    told = capsys.readouterr().out
    assert "feedback" in told and "form preference" in told and "runs/tiny/checkpoints/step_00000007" in told
