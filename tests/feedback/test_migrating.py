"""Stores of earlier versions are brought up with nothing lost; those of later ones are left alone."""

import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect, text

from megalm.errors import UserError
from megalm.feedback.conversations import show_conversation
from megalm.feedback.database import connect, make_file, parse_url
from megalm.feedback.migrating import migrate, newest
from megalm.feedback.opinions import Place, compare
from megalm.feedback.store import Store, Who
from megalm.feedback.tables import Table


def test_the_steps_make_the_tables_that_the_program_works_with(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/store.db")
    assert migrate(url) == (None, newest()) and migrate(url) == (newest(), newest())
    with connect(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []
        checks = inspect(connection).get_check_constraints("ratings")
    assert [check["name"] for check in checks] == ["ck_ratings_value"]


def old_rows(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of the tables that the first version had, with the columns that it had."""
    tables = ("owners", "conversations", "exchanges", "choices", "ratings", "edits")
    found = {
        table: connection.execute(text(f"SELECT * FROM {table} ORDER BY id")).mappings() for table in tables
    }
    return {
        table: [
            {name: value for name, value in row.items() if name not in ("parent", "consent_said")}
            for row in rows
        ]
        for table, rows in found.items()
    }


FIRST = [
    "INSERT INTO owners VALUES (3, 'key', 'ann', '2026-01-02 03:04:05.000006')",
    "INSERT INTO conversations VALUES (5, 3, 'talk', 'A talk', 1, '2026-01-02', '2026-01-03')",
    "INSERT INTO exchanges VALUES (7, 5, 'one', '2026-01-02', 'tiny', 'runs/tiny', 7, 'ab', '[{\"role\": \"user\", "
    '"content": "Hands?"}]\', \'{"seed": 1}\')',
    "INSERT INTO choices VALUES (9, 7, 0, 'Two.', 'stop'), (10, 7, 1, 'Ten.', 'length')",
    "INSERT INTO ratings VALUES (11, 9, 1, 'correct', 'yes', '2026-01-02')",
    "INSERT INTO edits VALUES (13, 10, 'Two, too.', '2026-01-02')",
]


def test_an_old_store_is_brought_up_with_nothing_lost(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/store.db"
    url = parse_url(address)
    assert migrate(url, "1") == (None, "1")
    with connect(url).begin() as connection:
        for statement in FIRST:
            connection.exec_driver_sql(statement)
        before = old_rows(connection)
    assert len(before["choices"]) == 2
    store = Store(address)
    assert (store.version_before, store.version) == ("1", newest())
    with connect(url).connect() as connection:
        assert old_rows(connection) == before
    ann = Who("key", "ann")
    compare(store, ann, Place("one", 0), Place("one", 1), "a")
    [exchange] = show_conversation(store, ann, "talk")["exchanges"]
    assert exchange["parent"] is None and exchange["messages"] == [{"role": "user", "content": "Hands?"}]
    assert [choice["edit"] for choice in exchange["choices"]] == [None, "Two, too."]


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/store.db")
    migrate(url, "1")
    monkeypatch.setattr(Operations, "create_index", None)  # the last call of the second step
    with pytest.raises(TypeError):
        migrate(url)
    monkeypatch.undo()
    with connect(url).connect() as connection:
        assert not inspect(connection).has_table("comparisons")
    assert migrate(url) == ("1", newest())


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    url = parse_url(f"sqlite:///{tmp_path}/store.db")
    migrate(url)
    with connect(url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '99'"))
    before = (tmp_path / "store.db").read_bytes()
    with pytest.raises(UserError, match="is of a newer megalm .version 99"):
        migrate(url)
    assert (tmp_path / "store.db").read_bytes() == before


def test_only_this_programs_store_is_opened_to_be_read_and_nothing_is_written_to_others(
    tmp_path: Path,
) -> None:
    old, other = tmp_path / "old.db", tmp_path / "other.db"
    migrate(parse_url(f"sqlite:///{old}"), "2")
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    before = [file.read_bytes() for file in (old, other)]
    for file, create, told in (
        (old, False, "of an older megalm .version 2.*megalm feedback migrate --store sqlite:///.*old.db"),
        (other, False, "is no store of feedback"),
        (other, True, "another program's database .it has a table 'customers'"),
    ):
        with pytest.raises(UserError, match=told):
            Store(f"sqlite:///{file}", create)
        assert [file.read_bytes() for file in (old, other)] == before
    assert not list(tmp_path.glob("other.db-*"))
    Store(f"sqlite:///{old}").close()
    assert Store(f"sqlite:///{old}", create=False).version_before == newest()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("feedback.db", "no address of a database"),
        ("mysql://me:hidden@host/db", "neither sqlite:///FILE nor postgresql://"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_an_address_that_is_none_is_told(url: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        parse_url(url)
    assert "hidden" not in str(error.value)


def test_a_file_that_is_no_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("something else " * 100)
    with pytest.raises(UserError, match="file is not a database"):
        migrate(parse_url(f"sqlite:///{tmp_path}/store.db"))


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "store.db"
    make_file(file)
    url = parse_url(f"sqlite:///{file}")
    migrate(url)
    with connect(url).begin() as connection:
        connection.execute(text("CREATE TABLE more (a INTEGER)"))
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    assert modes["store.db"] == modes["store.db-wal"] == modes["store.db-shm"] == 0o600
