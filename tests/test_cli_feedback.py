"""The commands `megalm feedback`: what they print, and one line and code 2 for a user's mistake."""

import json
from pathlib import Path

import pytest

from megalm import cli
from megalm.feedback.conversations import users_of
from megalm.feedback.migrating import newest
from megalm.feedback.opinions import Place, compare, rate
from megalm.feedback.store import Store, Who
from tests.feedback.small import say
from tests.test_cli import mistake


@pytest.fixture
def address(tmp_path: Path) -> str:
    """Of a store with three users of two keys."""
    address = f"sqlite:///{tmp_path}/store.db"
    store = Store(address)
    for number, who in enumerate((Who("anyone", "a"), Who("anyone", "b"), Who("key", ""))):
        say(store, f"r{number}", "Hands? Ask me@example.org.", ["two", "ten"], who=who, consent=number < 2)
        compare(store, who, Place(f"r{number}", 0), Place(f"r{number}", 1), "a")
        rate(store, who, Place(f"r{number}", 1), -1, "wrong")
    return address


def test_exports_are_told_and_recorded(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    command = ["feedback", "export", "--store", address, "--form", "preference", "-o", str(file)]
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{file}  1 records of 1 comparisons",
        "  dropped: 2 copy, 1 unpaired",
        "conversations without consent: 1",
        "masked: 4 email",
    ]
    prompt = [{"role": "user", "content": "Hands? Ask <EMAIL>."}]
    assert json.loads(file.read_text()) == {"prompt": prompt, "chosen": "two", "rejected": "ten"}
    record = json.loads((tmp_path / "pairs.jsonl.lineage.json").read_text())
    assert record["made_of"][0]["answers"] == 2 and record["store"] == address
    assert "exists; choose another file" in mistake(capsys, *command)
    assert cli.main([*command, "--overwrite", "--json", "--held-out", "0.0001"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert {name: part["records"] for name, part in made.items()} == {"train": 1, "held_out": 0}
    assert (tmp_path / "pairs.held_out.jsonl").read_text() == ""
    for more, told in (
        (["--form", "dpo"], "choose one of sft, preference, kto"),
        (["--held-out", "1"], "from 0 to below 1"),
        (
            ["--form", "sft"],
            "gives no record: 4 answers with consent, 1 conversations without; dropped: 2 rated_down",
        ),
    ):
        assert told in mistake(capsys, *command, "--overwrite", *more)


def test_counts_are_printed(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["feedback", "stats", "--store", address]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "down: 3" in lines and "comparisons: 3" in lines and "reason wrong (down): 3" in lines
    assert "model tiny: 0 up, 3 down, 3 wins, 3 losses, 0 ties" in lines
    assert cli.main(["feedback", "stats", "--store", address, "--days", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["by_day"]) == 1


def test_users_are_deleted_by_name(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    delete = ["feedback", "delete-user", "--store", address]
    assert "2 users of 'anyone' are there" in mistake(capsys, *delete, "anyone")
    assert "nothing is kept of 'anyone', user 'c'" in mistake(capsys, *delete, "anyone", "--user", "c")
    assert cli.main([*delete, "key", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["deleted"]
    assert counts["conversations"] == counts["ratings"] == 1 and counts["choices"] == 2
    assert cli.main([*delete, "anyone", "--user", "a"]) == 0
    assert users_of(Store(address), "anyone") == ["b"]
    assert cli.main([*delete, "anyone", "--all-users"]) == 0
    assert users_of(Store(address), "anyone") == []


def test_tables_are_brought_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"sqlite:///{tmp_path}/new.db"
    assert "there is no such store" in mistake(capsys, "feedback", "stats", "--store", address)
    for before in (None, newest()):
        assert cli.main(["feedback", "migrate", "--store", address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"before": before, "now": newest()}
    assert "no address of a database" in mistake(capsys, "feedback", "stats", "--store", "new.db")
