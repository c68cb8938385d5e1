"""What is kept, of whom, and that it is gone when it is deleted."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from megalm.errors import UserError
from megalm.feedback.conversations import (
    change_conversation,
    delete_conversation,
    delete_owner,
    list_conversations,
    show_conversation,
    users_of,
)
from megalm.feedback.opinions import Place, compare, edit, rate
from megalm.feedback.store import Store, Unfit, Unknown
from megalm.feedback.summary import summary
from tests.feedback.small import ANN, BOB, open_store, say, user


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def test_an_exchange_is_shown_as_it_was_said(store: Store) -> None:
    messages = [{"role": "system", "content": "Be brief.\0"}, *user("  How many\nhands? " + "x" * 100)]
    say(store, "one", messages, ["two\0", "ten"], options={"seed": 3}, parent="zero", consent=None)
    rate(store, ANN, Place("one", 0), 1, "correct", "<b>yes</b>")
    edit(store, ANN, Place("one", 1), "two, I think")
    shown = show_conversation(store, ANN, "talk")
    assert shown["title"] == ("How many hands? " + "x" * 100)[:80] and not shown["consent"]
    [exchange] = shown.pop("exchanges")
    [listed], more = list_conversations(store, ANN, 50)
    assert listed == shown and listed["replies"] == 1 and not more
    assert exchange.pop("created") == shown["created"]
    rating = {"value": 1, "reason": "correct", "comment": "<b>yes</b>"}
    both = [
        {"index": 0, "content": "two\ufffd", "finish_reason": "stop", "rating": rating, "edit": None},
        {"index": 1, "content": "ten", "finish_reason": "stop", "rating": None, "edit": "two, I think"},
    ]
    assert exchange == {
        "reply": "one",
        "parent": "zero",
        "model": "tiny",
        "messages": messages,
        "choices": both,
        "options": {"seed": 3},
    }


def test_the_last_word_counts(store: Store) -> None:
    say(store, "one", "a", ["b", "c"])
    for value, reason in ((1, "clear"), (-1, None)):
        rate(store, ANN, Place("one", 0), value, reason)
    edit(store, ANN, Place("one", 0), "x")
    edit(store, ANN, Place("one", 0), "y")
    compare(store, ANN, Place("one", 0), Place("one", 1), "tie")
    compare(store, ANN, Place("one", 1), Place("one", 0), "a")
    [choice, _] = show_conversation(store, ANN, "talk")["exchanges"][0]["choices"]
    assert choice["rating"] == {"value": -1, "reason": None, "comment": None} and choice["edit"] == "y"
    found = summary(store)
    assert (found["totals"]["comparisons"], found["totals"]["edits"]) == (1, 1)
    assert found["by_model"] == [{"model": "tiny", "up": 0, "down": 1, "wins": 1, "losses": 1, "ties": 0}]


def test_consent_is_what_was_said_last(store: Store) -> None:
    for reply, said, holds in (("a", None, False), ("b", True, True), ("c", None, True), ("d", False, False)):
        say(store, reply, "?", "!", consent=said)
        assert show_conversation(store, ANN, "talk")["consent"] == holds
    assert change_conversation(store, ANN, "talk", title="New", consent=True)["consent"]
    assert show_conversation(store, ANN, "talk")["title"] == "New"


def test_nobody_reaches_what_is_somebody_elses(store: Store) -> None:
    say(store, "one", "?", ["!", "!!"], who=ANN)
    say(store, "two", "?", "!", who=BOB)
    place, own = Place("one", 0), Place("two", 0)
    for attempt in (
        lambda: show_conversation(store, BOB, "absent"),
        lambda: change_conversation(store, BOB, "other", consent=True),
        lambda: rate(store, BOB, place, 1),
        lambda: edit(store, BOB, place, "x"),
        lambda: compare(store, BOB, own, place, "a"),
        lambda: compare(store, BOB, place, own, "a"),
        lambda: rate(store, ANN, Place("one", 2), 1),
        lambda: rate(store, ANN, Place("one\0", 0), 1),
        lambda: show_conversation(store, ANN, "talk\0"),
        lambda: list_conversations(store, BOB, 5, before="absent"),
    ):
        with pytest.raises(Unknown):
            attempt()
    assert [e["reply"] for e in show_conversation(store, BOB, "talk")["exchanges"]] == ["two"]
    delete_conversation(store, BOB, "talk")
    assert show_conversation(store, ANN, "talk")["replies"] == 1


def test_answers_to_other_questions_cannot_be_compared(store: Store) -> None:
    say(store, "one", "a", "b")
    say(store, "two", "A", "b")
    with pytest.raises(Unfit, match="different messages"):
        compare(store, ANN, Place("one", 0), Place("two", 0), "a")
    with pytest.raises(Unfit, match="the same answer"):
        compare(store, ANN, Place("one", 0), Place("one", 0), "a")


def test_pages_of_conversations_hold_each_once_newest_first(store: Store) -> None:
    for number in range(7):
        say(store, f"r{number}", "?", "!", conversation=f"c{number}")
    say(store, "again", "?", "!", conversation="c2")
    seen, before, more = [], None, True
    while more:
        page, more = list_conversations(store, ANN, 3, before)
        seen += [one["id"] for one in page]
        before = seen[-1]
    assert seen == ["c2", "c6", "c5", "c4", "c3", "c1", "c0"]


def test_what_is_deleted_is_nowhere_in_the_files(store: Store, tmp_path: Path) -> None:
    def found(word: str) -> bool:
        return any(word.encode() in file.read_bytes() for file in tmp_path.iterdir())

    for reply, who in (("one", ANN), ("two", BOB)):
        say(store, reply, f"asked-{reply}", [f"answered-{reply}"], who=who)
        rate(store, who, Place(reply, 0), -1, "wrong", f"commented-{reply}")
        edit(store, who, Place(reply, 0), f"edited-{reply}")
    say(store, "three", "asked-three", "answered-three", conversation="other")
    words = ["asked-one", "answered-one", "commented-one", "edited-one"]
    assert all(map(found, [*words, "asked-three"]))
    delete_conversation(store, ANN, "talk")
    assert not any(map(found, words)) and found("asked-three")
    counts = {"conversations": 1, "exchanges": 1, "choices": 1, "ratings": 0, "edits": 0, "comparisons": 0}
    assert delete_owner(store, ANN) == counts and not found("asked-three")
    assert not any(delete_owner(store, ANN).values()) and users_of(store, "key") == ["bob"]
    assert show_conversation(store, BOB, "talk")["exchanges"][0]["choices"][0]["edit"] == "edited-two"


def test_a_comparison_goes_with_either_answer(store: Store) -> None:
    for reply in ("one", "two"):
        say(store, reply, "?", reply, conversation=reply)
    compare(store, ANN, Place("one", 0), Place("two", 0), "b")
    delete_conversation(store, ANN, "two")
    assert summary(store)["totals"]["comparisons"] == 0
    assert show_conversation(store, ANN, "one")["replies"] == 1


def write(folder: Path, writer: int) -> None:
    store = Store(f"sqlite:///{folder}/store.db")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: one(store, f"{writer}-{n}"), range(12)))


def one(store: Store, reply: str) -> None:
    say(store, reply, "?", ["!"], conversation=f"c{reply[-1]}")
    rate(store, ANN, Place(reply, 0), 1)


def test_many_who_write_at_once_lose_nothing(tmp_path: Path) -> None:
    children = []
    for writer in range(3):
        child = os.fork()
        if child == 0:
            try:
                write(tmp_path, writer)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    found = summary(open_store(tmp_path))["totals"]
    assert (found["exchanges"], found["up"], found["conversations"]) == (36, 36, 10)


def test_counts_are_by_day_model_and_reason(store: Store) -> None:
    for number, (model, value, reason) in enumerate(
        [("a", 1, "clear"), ("a", -1, "wrong"), ("b", -1, "wrong"), ("b", -1, None)]
    ):
        say(store, f"{number}", "?", [f"{number}"], model=model)
        rate(store, ANN, Place(f"{number}", 0), value, reason)
    for a, b, pick in (("0", "2", "a"), ("0", "3", "tie"), ("1", "2", "neither")):
        compare(store, ANN, Place(a, 0), Place(b, 0), pick)
    edit(store, ANN, Place("3", 0), "better")
    found = summary(store, days=3)
    assert [len(found["by_day"]), *(list(day.values())[1:] for day in found["by_day"])] == [
        3,
        [0] * 5,
        [0] * 5,
        [1, 3, 3, 1, 4],
    ]
    assert found["by_model"] == [
        {"model": "a", "up": 1, "down": 1, "wins": 1, "losses": 0, "ties": 1},
        {"model": "b", "up": 0, "down": 2, "wins": 0, "losses": 1, "ties": 1},
    ]
    assert found["by_reason"] == [
        {"reason": "wrong", "value": -1, "count": 2},
        {"reason": "clear", "value": 1, "count": 1},
    ]
    assert found["totals"] == {
        "up": 1,
        "down": 3,
        "comparisons": 3,
        "edits": 1,
        "exchanges": 4,
        "conversations": 1,
        "neither": 1,
    }
    assert summary(store)["by_day"] == found["by_day"][-1:]


def test_commits_are_synced_and_deletions_overwritten(store: Store) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1}  # 2: FULL
    for transaction in (store.reading, store.writing):
        with transaction() as session:
            found = {name: session.execute(text(f"PRAGMA {name}")).scalar_one() for name in wanted}
        assert found == wanted


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such store"):
        Store(f"sqlite:///{tmp_path}/absent.db", create=False)
    with pytest.raises(UserError, match="a file is where|unable to open|directory"):
        (tmp_path / "folder.db").mkdir()
        Store(f"sqlite:///{tmp_path}/folder.db")
