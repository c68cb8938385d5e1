"""Damaged checkpoints are noticed, told of and passed over; a run without any good one stops."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megalm.checkpoint import list_checkpoints
from megalm.checkpoint.directory import verify
from megalm.config import Config
from megalm.testing import RankError, run_distributed
from tests.train.runs import PP2, ZERO1, run_config, step_lines, train, train_in_world


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of 8 steps on two processes, stopped after 6 with checkpoints of steps 2, 4 and 6."""
    directory: Path = tmp_path_factory.mktemp("stopped")
    config = run_config(directory, data, ZERO1, "checkpoint.interval=2", "train.exit_after_steps=6")
    train_in_world(2, config)
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The same run undisturbed."""
    directory: Path = tmp_path_factory.mktemp("whole")
    train_in_world(2, run_config(directory, data, ZERO1, "checkpoint.interval=2"))
    return directory


def train_and_listen(config: Config) -> list[str]:
    """Train and return this rank's warnings about checkpoints."""
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("megalm.checkpoint")
    logger.addHandler(handler)
    try:
        train(config)
    finally:
        logger.removeHandler(handler)
    return warnings


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("tensors/__0_0.distcp", flip_last_byte),
        ("tensors/__1_0.distcp", truncate),
        ("tensors/__1_0.distcp", Path.unlink),
        ("tensors/.metadata", flip_last_byte),
        ("config.yaml", flip_last_byte),
        ("config.yaml", truncate),
        ("state.json", truncate),
        ("manifest.json", truncate),
        ("manifest.json", Path.unlink),
    ],
)
def test_resume_falls_back_to_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, data: Path, stopped: Path, whole: Path, pattern: str, harm: Callable[[Path], None]
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    harm(run / "checkpoints" / "step_00000006" / pattern)
    config = run_config(run, data, ZERO1, "checkpoint.interval=2")
    warnings, silence = run_distributed(train_and_listen, 2, config)
    assert len(warnings) == 1 and silence == []
    assert "step_00000006" in warnings[0] and "trying the checkpoint before it" in warnings[0]
    assert step_lines(run) == step_lines(whole)
    assert list(list_checkpoints(run)) == [4, 6, 8]
    assert [verify(path) for path in list_checkpoints(run).values()] == [None, None, None]
    assert (run / "checkpoints" / "step_00000006.damaged").is_dir()


def test_damaged_checkpoints_do_not_count_as_kept(tmp_path: Path, data: Path, stopped: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    for step in (4, 6):
        truncate(run / "checkpoints" / f"step_{step:08d}" / "state.json")
    settings = (ZERO1, "checkpoint.interval=1", "checkpoint.keep_last=1", "train.exit_after_steps=2")
    train_in_world(2, run_config(run, data, *settings))
    assert list(list_checkpoints(run)) == [4]
    assert verify(run / "checkpoints" / "step_00000004") is None


def test_run_whose_checkpoints_are_all_damaged_stops_and_keeps_them(
    tmp_path: Path, data: Path, stopped: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    for path in list_checkpoints(run).values():
        truncate(path / "tensors" / "__0_0.distcp")
    before = sorted((run / "checkpoints").rglob("*"))
    with pytest.raises(
        RankError, match="UserError.*none of its 3 checkpoints is intact: choose another run.dir"
    ):
        run_distributed(train, 2, run_config(run, data, ZERO1))
    assert sorted((run / "checkpoints").rglob("*")) == before


def load_as_weights(config: Config, path: Path) -> None:
    from megalm.checkpoint import load_weights
    from tests.tiny import tiny_engine

    engine = tiny_engine(config)
    before = {name: parameter.detach().clone() for name, parameter in engine.model.named_parameters()}
    try:
        load_weights(engine, path)
    finally:
        for name, parameter in engine.model.named_parameters():
            assert parameter.equal(before[name]), f"{name} was changed"


def refusal(directory: Path, data: Path, path: Path, *overrides: str) -> str:
    with pytest.raises(RankError) as caught:
        run_distributed(load_as_weights, 1, run_config(directory, data, *overrides), path)
    return str(caught.value).strip().splitlines()[-1]


def test_weights_of_a_damaged_checkpoint_are_not_loaded(tmp_path: Path, data: Path, stopped: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    checkpoint = run / "checkpoints" / "step_00000006"
    flip_last_byte(checkpoint / "tensors" / "__0_0.distcp")
    said = refusal(tmp_path, data, checkpoint)
    assert "UserError" in said and "checksum; use another checkpoint" in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocab_size=300", "vocabulary 509, this one has 300"),
        ("model.hidden_size=32", "it is another model; take the section `model` of"),
        ("model.num_layers=4", "has shape"),
        ("model.position_embedding=learned", "no tensor embedding.position_embeddings.weight"),
    ],
)
def test_weights_of_another_model_are_not_loaded(
    tmp_path: Path, data: Path, stopped: Path, override: str, message: str
) -> None:
    said = refusal(tmp_path, data, stopped / "checkpoints" / "step_00000006", override)
    assert "UserError" in said and message in said


def test_what_one_stage_alone_refuses_is_refused_by_all(tmp_path: Path, data: Path) -> None:
    """The last stage misses its output layer; the first one, which has all it needs, must not wait for it."""
    saved = run_config(tmp_path / "tied", data, "model.tie_embeddings=true", "train.exit_after_steps=1")
    train_in_world(1, saved)
    checkpoint = tmp_path / "tied" / "checkpoints" / "step_00000001"
    config = run_config(tmp_path, data, PP2)
    results = run_distributed(refusal_here, 2, config, checkpoint, timeout=60)
    assert results[0] == results[1] and "no tensor output_layer.weight" in results[0]


def refusal_here(config: Config, path: Path) -> str:
    """This rank's own."""
    from megalm.errors import UserError

    try:
        load_as_weights(config, path)
    except UserError as error:
        return str(error)
    return ""
