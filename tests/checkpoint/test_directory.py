"""Which checkpoints are listed, kept, taken for intact and cleared away."""

import json
from pathlib import Path

import pytest

from megalm.checkpoint.directory import (
    TENSORS,
    checkpoint_name,
    clear_remains,
    discard,
    find_checkpoint,
    list_checkpoints,
    point_to_best,
    prune,
    read_config,
    read_state,
    set_aside,
    tokenizer_of,
    verify,
    write_manifest,
)
from megalm.config import Config, dump_config
from megalm.errors import UserError
from tests.kills import killed


def make_checkpoint(run: Path, step: int) -> Path:
    """A complete checkpoint whose tensors are some bytes."""
    path = run / "checkpoints" / checkpoint_name(step)
    (path / TENSORS).mkdir(parents=True)
    (path / TENSORS / "__0_0.distcp").write_bytes(bytes(range(256)))
    (path / TENSORS / ".metadata").write_bytes(b"table")
    dump_config(Config(), path / "config.yaml")
    (path / "state.json").write_text(json.dumps({"step": step}))
    write_manifest(path, {})
    return path


def steps(run: Path) -> list[int]:
    return list(list_checkpoints(run))


def test_checkpoints_are_listed_by_step_without_remains_and_those_set_aside(tmp_path: Path) -> None:
    for step in (20, 3, 123456789):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoints" / ".step_00000030.tmp").mkdir()
    (make_checkpoint(tmp_path, 50)).rename(tmp_path / "checkpoints" / "step_00000050.damaged")
    assert steps(tmp_path) == [3, 20, 123456789]
    assert steps(tmp_path / "absent") == []


def test_a_checkpoint_is_found_by_its_path_its_run_and_its_step(tmp_path: Path) -> None:
    first, second = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    assert find_checkpoint(tmp_path) == find_checkpoint(str(second)) == second
    assert find_checkpoint(tmp_path, step=1) == first
    with pytest.raises(UserError, match="is one checkpoint, and a step chooses among those of a run"):
        find_checkpoint(first, "best")
    assert read_state(first) == {"step": 1} and read_config(first) == Config()


def test_a_tokenizer_lies_beside_a_converted_model_or_in_the_run(tmp_path: Path) -> None:
    """What lies above a converted model is of something else."""
    of_run = make_checkpoint(tmp_path, 1)
    (tmp_path / "tokenizer").mkdir()
    assert tokenizer_of(of_run, Config()) == tmp_path / "tokenizer"
    alone = tmp_path / "models" / "alone"
    alone.parent.mkdir()
    of_run.rename(alone)
    assert tokenizer_of(alone, Config()) is None
    (alone / "tokenizer").mkdir()
    assert tokenizer_of(alone, Config()) == alone / "tokenizer"


@pytest.mark.parametrize(
    ("path", "step", "message"),
    [
        ("absent", None, "no such run"),
        ("hub", None, "is a model of Hugging Face's: convert it first, megalm convert .*hub DEST"),
        (".", None, "neither a checkpoint .* nor a run directory"),
        ("run", 7, "no checkpoint of step 7; there are 1, 2"),
    ],
)
def test_what_is_no_checkpoint_is_explained(
    tmp_path: Path, path: str, step: int | None, message: str
) -> None:
    for made in (1, 2):
        make_checkpoint(tmp_path / "run", made)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        find_checkpoint(tmp_path / path, step)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (1, 0, [60]),
        (2, 0, [50, 60]),
        (1, 20, [20, 40, 60]),
        (2, 30, [30, 50, 60]),
        (9, 0, list(range(10, 61, 10))),
    ],
)
def test_the_newest_and_every_so_many_are_kept(
    tmp_path: Path, keep_last: int, keep_every: int, kept: list[int]
) -> None:
    for step in range(10, 61, 10):
        make_checkpoint(tmp_path, step)
    dropped = prune(tmp_path, keep_last, keep_every)
    assert steps(tmp_path) == kept
    assert sorted(dropped + kept) == list(range(10, 61, 10))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [checkpoint_name(s) for s in kept]


def test_remains_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 1)
    discard(make_checkpoint(tmp_path, 2))
    set_aside(make_checkpoint(tmp_path, 3))
    set_aside(make_checkpoint(tmp_path, 3))
    folder = tmp_path / "checkpoints"
    for name in (".step_00000004.tmp", ".step_00000005.deleted"):
        (folder / name / TENSORS).mkdir(parents=True)
    (folder / ".note").write_text("mine")
    clear_remains(tmp_path)
    assert {path.name for path in folder.iterdir()} == {".note", "step_00000001", "step_00000003.damaged"}


def test_an_intact_checkpoint_verifies(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    assert verify(path) is None
    recorded = json.loads((path / "manifest.json").read_text())["files"]
    assert recorded.keys() == {"config.yaml", "state.json", "tensors/.metadata", "tensors/__0_0.distcp"}


@pytest.mark.parametrize("name", ["config.yaml", "state.json", "tensors/.metadata", "tensors/__0_0.distcp"])
def test_any_damage_to_any_file_is_found(tmp_path: Path, name: str) -> None:
    file = make_checkpoint(tmp_path, 1) / name
    path, good = tmp_path / "checkpoints" / "step_00000001", file.read_bytes()
    for damaged in (good[:-1], good[:-1] + bytes([good[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        assert str(file) in str(verify(path))
        # several ranks share the digests; together they see what one sees
        assert [w for w in (verify(path, part, 3) for part in range(3)) if w]
    file.unlink()
    assert "missing" in str(verify(path))
    file.write_bytes(good)
    assert verify(path) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"state.json": {"size": 1}}}']
)
def test_a_damaged_manifest_is_found(tmp_path: Path, text: str) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / "manifest.json").write_text(text)
    assert "manifest.json" in str(verify(path))


def test_damaged_configuration_and_state_are_not_read(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    for name, read in (("config.yaml", read_config), ("state.json", read_state)):
        text = (path / name).read_text()
        (path / name).write_text(text.replace("1", "2"))
        with pytest.raises(UserError, match="differs from the manifest's checksum; use another checkpoint"):
            read(path)


def state_with_best(path: Path, step: int | None) -> None:
    """Let the checkpoint at `path` say which one was the best by then."""
    (path / "state.json").write_text(
        json.dumps({"step": 0, "best": None if step is None else {"step": step}})
    )
    write_manifest(path, {})


def test_the_best_checkpoint_is_the_one_that_the_newest_whole_state_names(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        state_with_best(make_checkpoint(tmp_path, step), min(step, 2))
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(tmp_path, 2) == find_checkpoint(tmp_path, "2")
    (find_checkpoint(tmp_path, 3) / "state.json").write_text("{")
    (find_checkpoint(tmp_path, 2) / "state.json").write_text("{")
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(tmp_path, 1)
    state_with_best(find_checkpoint(tmp_path, 3), None)
    with pytest.raises(UserError, match="no best checkpoint was kept; set checkpoint.keep_best.metric"):
        find_checkpoint(tmp_path, "best")
    with pytest.raises(UserError, match="step 'last' is neither a number nor `best`"):
        find_checkpoint(tmp_path, "last")


def test_the_best_checkpoint_is_not_pruned(tmp_path: Path) -> None:
    for step in range(10, 61, 10):
        make_checkpoint(tmp_path, step)
    prune(tmp_path, keep_last=2, keep_every=0, best=20)
    assert steps(tmp_path) == [20, 50, 60]


def test_a_kill_between_save_and_link_leaves_the_old_link_and_the_new_state(tmp_path: Path) -> None:
    state_with_best(make_checkpoint(tmp_path, 1), 1)
    point_to_best(tmp_path, 1)
    state_with_best(make_checkpoint(tmp_path, 2), 2)
    best = tmp_path / "checkpoints" / "best"
    assert killed(Path, "replace", 0, lambda: point_to_best(tmp_path, 2))
    assert find_checkpoint(best).samefile(find_checkpoint(tmp_path, 1))
    assert find_checkpoint(tmp_path, "best") == find_checkpoint(tmp_path, 2)
    point_to_best(tmp_path, 2)
    assert find_checkpoint(best).samefile(find_checkpoint(tmp_path, 2)) and steps(tmp_path) == [1, 2]
    point_to_best(tmp_path, None)
    assert not best.is_symlink() and not (tmp_path / "checkpoints" / ".best.tmp").is_symlink()
