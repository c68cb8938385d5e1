"""Release files: what is current, the way back, and what is refused without changing anything."""

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from megalm.checkpoint import find_checkpoint
from megalm.cli import main
from megalm.errors import UserError
from megalm.release.file import checkpoint_of, promote, read_release, roll_back
from tests.evaluate.small import make_run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs that differ by their manifests alone."""
    folder = tmp_path_factory.mktemp("models")
    first = make_run(folder / "0")
    for number in (1, 2):
        shutil.copytree(first, folder / str(number))
        manifest = find_checkpoint(folder / str(number)) / "manifest.json"
        manifest.write_text(manifest.read_text() + "\n" * number)
    return [folder / str(number) for number in range(3)]


@pytest.fixture
def release(models: list[Path], tmp_path: Path) -> Path:
    file = tmp_path / "chat.release.json"
    for number, model in enumerate(models):
        promote(file, model, {"number": number}, number or None)
    return file


def test_versions_follow_each_other_and_the_way_back_leads_to_what_was_replaced(
    release: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_release(release)
    assert [(one.number, one.replaced, one.step) for one in found.versions] == [
        (1, None, 7),
        (2, 1, 7),
        (3, 2, 7),
    ]
    assert checkpoint_of(found.now) == find_checkpoint(models[2]).resolve()
    assert main(["feedback", "rollback", str(release), "--to", "1"]) == 0
    assert main(["feedback", "versions", str(release), "--current"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(find_checkpoint(models[0]).resolve())
    with pytest.raises(UserError, match="judged against 3: judge it again"):
        promote(release, models[1], {}, 3)
    promote(release, models[1], {}, 1)
    before, after = roll_back(release)
    assert (before.number, after.number) == (4, 1), "not to the one that was promoted before it"
    how = [(one.before, one.after, one.how) for one in read_release(release).switches]
    assert how[3:] == [(3, 1, "rollback"), (1, 4, "promote"), (4, 1, "rollback")]
    assert main(["feedback", "versions", str(release)]) == 0
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["*", " ", " ", " "]


def test_a_rollback_that_leads_nowhere_changes_nothing(
    release: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(models[0], copy)
    other = tmp_path / "other.release.json"
    promote(other, copy, {}, None)
    promote(other, models[1], {}, 1)
    shutil.rmtree(copy)
    content = other.read_bytes()
    for arguments, wrong in (
        ([str(release), "--to", "9"], "no version 9; there are 1 to 3"),
        ([str(release), "--to", "3"], "current already"),
        ([str(other)], "version 1: "),
        ([str(tmp_path / "absent.json")], "no such release file"),
        ([str(models[0])], "is no release file"),
    ):
        assert main(["feedback", "rollback", *arguments]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert wrong in line, line
    assert other.read_bytes() == content and read_release(release).current == 3
    roll_back(release, 1)
    with pytest.raises(UserError, match="took the place of none; name one with --to"):
        roll_back(release)


def test_a_checkpoint_that_has_changed_since_is_not_served_as_what_it_was(
    models: list[Path], tmp_path: Path
) -> None:
    release = tmp_path / "chat.release.json"
    shutil.copytree(models[0], tmp_path / "run")
    promote(release, tmp_path / "run", {}, None)
    manifest = find_checkpoint(tmp_path / "run") / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UserError, match="holds another model than was promoted"):
        checkpoint_of(read_release(release).now)


def test_a_damaged_candidate_begins_no_release(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models[0], tmp_path / "run")
    state = find_checkpoint(tmp_path / "run") / "state.json"
    state.write_text(state.read_text() + " ")
    release = tmp_path / "chat.release.json"
    for candidate, wrong in ((tmp_path / "run", "state.json"), (tmp_path / "absent", "no such run")):
        assert main(["feedback", "promote", str(candidate), "--release", str(release), "--first"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert wrong in line and not release.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"current": 4}, "current is 4, and there are 3 versions"),
        ({"versions": []}, "versions"),
        ({"format": 2}, "format"),
        ({"curent": 1}, "unknown key `curent`"),
        ({"current": "x"}, "current"),
    ],
)
def test_a_damaged_file_is_one_line(release: Path, change: dict[str, object], told: str) -> None:
    release.write_text(json.dumps(json.loads(release.read_text()) | change))
    with pytest.raises(UserError, match="is no release file") as error:
        read_release(release)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_one_command_at_a_time(release: Path) -> None:
    with open(release.with_name(f".{release.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being changed by another command"):
            roll_back(release)
    assert roll_back(release)[1].number == 2
