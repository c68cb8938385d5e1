"""What people take back while an answer is being written stays taken back: consent, conversations, all that is kept of them."""

import logging
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from megalm.feedback.conversations import (
    change_conversation,
    delete_conversation,
    delete_owner,
    list_conversations,
    show_conversation,
    users_of,
)
from megalm.feedback.store import LONGEST_ANSWER, Store
from megalm.feedback.tables import utc_now
from tests.feedback.small import ANN, BOB, open_store, say


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def consents(store: Store) -> bool:
    return bool(show_conversation(store, ANN, "talk")["consent"])


def test_consent_that_was_withdrawn_since_an_answer_was_begun_stays_withdrawn(store: Store) -> None:
    say(store, "first", "?", "!", consent=True)
    begun = utc_now()
    change_conversation(store, ANN, "talk", consent=False)
    say(store, "second", "?", "!", consent=True, begun=begun)
    assert not consents(store) and show_conversation(store, ANN, "talk")["replies"] == 2
    say(store, "third", "?", "!", consent=True)
    assert consents(store), "said later"
    begun = utc_now()
    say(store, "fourth", "?", "!", consent=False)
    say(store, "fifth", "?", "!", consent=True, begun=begun)
    assert not consents(store), "of two requests the later one's word holds, whichever is answered first"
    say(store, "sixth", "?", "!", consent=None)
    change_conversation(store, ANN, "talk", title="Talk")
    assert not consents(store)


def test_consent_is_not_taken_for_said_where_it_was_not(store: Store) -> None:
    begun = utc_now()
    say(store, "first", "?", "!", consent=None)
    say(store, "second", "?", "!", consent=True, begun=begun)
    assert consents(store)


@pytest.mark.parametrize("is_whole", [False, True])
def test_what_was_deleted_since_an_answer_was_begun_does_not_come_back(store: Store, is_whole: bool) -> None:
    say(store, "first", "?", "!")
    say(store, "other", "?", "!", conversation="other")
    say(store, "hers", "?", "!", who=BOB)
    begun = utc_now()
    delete_owner(store, ANN) if is_whole else delete_conversation(store, ANN, "talk")
    for reply, conversation, who in (
        ("late", "talk", ANN),
        ("late-too", "other", ANN),
        ("hers-too", "talk", BOB),
    ):
        say(store, reply, "?", "!", conversation=conversation, who=who, begun=begun)
    left, _ = list_conversations(store, ANN, 9)
    assert [(one["id"], one["replies"]) for one in left] == ([] if is_whole else [("other", 2)])
    assert users_of(store, "key") == (["bob"] if is_whole else ["ann", "bob"])
    assert show_conversation(store, BOB, "talk")["replies"] == 2, "another one's conversation of that name"
    say(store, "new", "?", "!")
    assert show_conversation(store, ANN, "talk")["replies"] == 1


def test_deletions_are_remembered_for_as_long_as_answers_take_and_without_names(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remembered() -> list[tuple[str, ...]]:
        with sqlite3.connect(str(store.url.database)) as connection:
            return list(connection.execute("SELECT what FROM deletions"))

    assert delete_owner(store, ANN)["conversations"] == 0 and users_of(store, "key") == []
    [(what,)] = remembered()
    assert "ann" not in what
    later = utc_now() + LONGEST_ANSWER + timedelta(seconds=1)
    monkeypatch.setattr("megalm.feedback.store.utc_now", lambda: later)
    delete_owner(store, BOB)
    assert len(remembered()) == 1 and remembered() != [(what,)]


def holds(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_deleted_words_go_as_soon_as_nobody_reads_them_and_nobody_waits_for_that(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_there() -> bool:
        return any(b"secret-word" in file.read_bytes() for file in tmp_path.iterdir())

    monkeypatch.setattr("megalm.feedback.wiping.SILENT_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    say(store, "first", "secret-word", "!")
    reader = sqlite3.connect(str(store.url.database), isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM exchanges").fetchone() == (1,)
    begun = time.monotonic()
    delete_conversation(store, ANN, "talk")
    say(store, "second", "?", "!", conversation="other")
    assert time.monotonic() - begun < 15, "a reader is waited for up to 30 s"
    assert holds(lambda: "is still in" in caplog.text) and is_there()
    reader.execute("COMMIT")
    assert holds(lambda: not is_there()) and holds(lambda: "is gone from" in caplog.text)
    assert store.close()


def test_words_whose_reader_stays_are_told_at_the_end_and_go_with_the_next_start(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megalm.feedback.store.CLOSING_SECONDS", 0.1)
    say(store, "first", "secret-word", "!")
    reader = sqlite3.connect(str(store.url.database), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM exchanges").fetchone()
    delete_owner(store, ANN)
    assert not store.close() and "it goes when that is opened again" in caplog.text
    reader.execute("COMMIT")
    open_store(tmp_path)
    assert not any(b"secret-word" in file.read_bytes() for file in tmp_path.iterdir())
    reader.close()


def test_the_list_of_conversations_reads_no_more_than_it_shows(store: Store) -> None:
    file = str(store.url.database)
    steps = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def count(_: object, __: object, statement: str, parameters: tuple[object, ...], *___: object) -> None:
        if "count(" in statement:
            with sqlite3.connect(file) as other:
                seen: list[None] = []
                other.set_progress_handler(lambda: seen.append(None), 10)
                list(other.execute(statement, parameters))
                steps.append(len(seen))

    say(store, "first", "?", "!", conversation="c0")
    for begin, end in ((1, 10), (10, 500)):
        with sqlite3.connect(file) as connection:
            copied = "owner_id, 'c' || {0}, title, consent, created, updated"
            for number in range(begin, end):
                connection.execute(
                    "INSERT INTO conversations (owner_id, name, title, consent, created, updated) "
                    f"SELECT {copied.format(number)} FROM conversations WHERE name = 'c0'"
                )
        assert len(list_conversations(store, ANN, 5)[0]) == 5
    few, many = steps
    assert many < 2 * few, steps
