"""A run refuses what cannot work before any process group exists, resumes what it should, and leaves its record."""

import contextlib
import fcntl
import json
import math
import os
import shutil
from pathlib import Path
from typing import IO
from unittest import mock

import pytest

from megalm.checkpoint import find_checkpoint, list_checkpoints
from megalm.config import load_config, parse_config
from megalm.dataset import build_dataset
from megalm.errors import UserError
from megalm.testing import RankError
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.train import lock
from megalm.train import run as run_module
from megalm.train.callbacks.metrics import read_metrics
from tests.checkpoint.stored import stored_tensors
from tests.train.runs import (
    PP2,
    TP2,
    VOCABULARY,
    events,
    run_config,
    step_lines,
    train,
    train_in_world,
    validation_losses,
)


def refusal(config) -> str:
    """The one line that a configuration is refused with, before anything is built."""
    with (
        mock.patch.object(
            run_module, "create_layout", side_effect=AssertionError("a process group was made")
        ),
        mock.patch.dict(os.environ),
        pytest.raises(UserError) as caught,
    ):
        os.environ.pop("WORLD_SIZE", None)
        train(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers `a` and `b`, and what each made of the same text."""
    directory: Path = tmp_path_factory.mktemp("text")
    texts = [
        f"the {word} of the end and the hand of {word}{n}" for n in range(80) for word in ("sea", "wood")
    ]
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, vocabulary in (("a", 270), ("b", 300)):
        train_bpe([directory / "text.jsonl"], vocabulary, directory / name)
        build_dataset([directory / "text.jsonl"], directory / name, directory / f"data_{name}", workers=1)
    return directory


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of 8 steps, stopped after 3."""
    directory: Path = tmp_path_factory.mktemp("stopped")
    train_in_world(1, run_config(directory, data, "train.exit_after_steps=3"))
    return directory


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=[]"], "data.train is empty"),
        (["train.eval_interval=2", "data.valid=[]"], "data.valid is empty"),
        (["data.train=[{path: absent}]"], "absent"),
        (["data.valid=[{path: absent}]", "train.eval_interval=2"], "absent"),
        (["tokenizer.path=absent"], "no tokenizer at absent"),
        (["model.vocab_size=null"], "model.vocab_size is unknown"),
        (["batch.seq_length=30000", "model.max_sequence_length=30000"], "fewer than one window"),
        ([TP2], "the layout needs a multiple of"),
        (["batch.micro_batch_size=3"], "is not a multiple of micro_batch_size 3"),
        (["run.resume=always"], "holds no checkpoint to resume from"),
    ],
)
def test_what_cannot_work_is_refused_before_any_process_group(
    tmp_path: Path, data: Path, overrides: list[str], message: str
) -> None:
    assert message in refusal(run_config(tmp_path / "run", data, *overrides))
    assert not (tmp_path / "run").exists()


def test_missing_weights_to_start_from_are_refused_with_nothing_left_behind(
    tmp_path: Path, data: Path
) -> None:
    assert "absent" in refusal(run_config(tmp_path / "run", data, "run.load=absent"))
    assert not (tmp_path / "run").exists()


def test_a_directory_given_up_between_opening_and_locking_is_not_shared(tmp_path: Path) -> None:
    def unlink_and_lock(file: IO[str], how: int) -> None:
        (tmp_path / ".lock").unlink()
        real(file, how)

    real = fcntl.flock
    with contextlib.ExitStack() as stack, mock.patch.object(fcntl, "flock", unlink_and_lock):
        assert "repeat the command" in str(lock._take(tmp_path, stack))


def test_refused_weights_leave_nothing_behind(tmp_path: Path, data: Path, stopped: Path) -> None:
    config = run_config(tmp_path / "run", data, f"run.load={stopped}", "model.hidden_size=32")
    with pytest.raises(RankError, match="has shape"):
        train_in_world(1, config)
    assert not (tmp_path / "run").exists()


def test_run_that_is_finished_keeps_its_configuration(tmp_path: Path, data: Path, stopped: Path) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    before = (run / "config.yaml").read_bytes()
    train_in_world(1, run_config(run, data, "train.steps=3"))
    assert (run / "config.yaml").read_bytes() == before
    assert any("nothing to do: train.steps is 3" in event for event in events(run))


def test_a_directory_in_use_by_another_run_is_refused(tmp_path: Path, data: Path) -> None:
    with open(tmp_path / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RankError, match="in use by another run"):
            train_in_world(2, run_config(tmp_path, data))
    assert not (tmp_path / "metrics.jsonl").exists()
    train_in_world(2, run_config(tmp_path, data, "train.exit_after_steps=1"))


def test_resuming_says_where_it_goes_on_and_when_there_is_nothing_to_do(tmp_path: Path, data: Path) -> None:
    train_in_world(1, run_config(tmp_path, data, "train.steps=2"))
    train_in_world(1, run_config(tmp_path, data, "train.steps=2", f"run.load={tmp_path}"))
    told = events(tmp_path)
    assert "going on from the checkpoint of step 2 under TP1 x PP1 x DP1" in told
    assert "nothing to do: train.steps is 2" in told
    assert "run.load is not used: the run directory has a checkpoint of its own" in told


def test_data_must_fit_the_tokenizer_and_the_vocabulary(tmp_path: Path, data: Path, text_run: Path) -> None:
    with_a, with_b = (f"{{path: {text_run}/data_{name}_train}}" for name in "ab")
    a, b = (f"tokenizer.path={text_run / name}" for name in "ab")
    for overrides, message in [
        ([a, f"data.train=[{with_b}]"], "was made with tokenizer_hash"),
        ([b, f"data.train=[{with_b}, {with_a}]"], "was made with tokenizer_hash"),
        ([f"data.train=[{with_a}, {with_b}]"], "were made with different tokenizers"),
        ([a, f"data.train=[{with_a}]", "model.vocab_size=200"], "model.vocab_size 200 is smaller"),
        ([f"data.train=[{with_a}]", "model.vocab_size=200"], "model.vocab_size 200 is smaller"),
    ]:
        assert message in refusal(run_config(tmp_path, data, *overrides))


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_run_directory_records_the_resolved_run(
    tmp_path: Path, data: Path, text_run: Path, with_tokenizer: bool
) -> None:
    """The vocabulary comes from the tokenizer, or from what the data say of theirs."""
    source = text_run / "data_b_train"
    overrides = ["model.vocab_size=null", f"data.train=[{{path: {source}}}]", "train.exit_after_steps=1"]
    overrides += [f"tokenizer.path={text_run / 'b'}"] if with_tokenizer else []
    config = run_config(tmp_path, data, *overrides)
    train_in_world(1, config)
    tokenizer = load_tokenizer(text_run / "b")
    resolved = load_config(tmp_path / "config.yaml")
    assert resolved.model.vocab_size == tokenizer.vocab_size
    config.model.vocab_size = tokenizer.vocab_size
    assert resolved == config == load_config(find_checkpoint(tmp_path) / "config.yaml")
    lineage = json.loads((tmp_path / "lineage.json").read_text())
    recorded = json.loads(Path(f"{source}.json").read_text())["bin_sha256"]
    assert lineage["data"] == {str(source): recorded}
    assert lineage["validation"] == {str(data / "valid"): None}
    assert lineage["tokenizer"] == (tokenizer.hash if with_tokenizer else None)
    if with_tokenizer:
        assert load_tokenizer(tmp_path / "tokenizer").hash == tokenizer.hash


def test_finished_run_resumes_from_its_own_copy_of_the_tokenizer(
    tmp_path: Path, data: Path, text_run: Path
) -> None:
    source = f"data.train=[{{path: {text_run}/data_a_train}}]"
    overrides = (source, "model.vocab_size=null", "train.exit_after_steps=1")
    train_in_world(1, run_config(tmp_path, data, *overrides, f"tokenizer.path={text_run / 'a'}"))
    result = train_in_world(
        1, run_config(tmp_path, data, *overrides, f"tokenizer.path={tmp_path / 'tokenizer'}")
    )
    assert result["step"] == 2


def test_resume_auto_begins_and_goes_on_always_insists_never_refuses(
    tmp_path: Path, data: Path, stopped: Path
) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    assert list(list_checkpoints(run)) == [3]
    assert "run.resume is `never`" in refusal(run_config(run, data, "run.resume=never"))
    stop = "train.exit_after_steps=2"
    assert train_in_world(1, run_config(run, data, "run.resume=always", stop))["step"] == 5
    assert train_in_world(1, run_config(run, data, "run.resume=auto", stop))["step"] == 7
    assert train_in_world(1, run_config(tmp_path / "new", data, "run.resume=never", stop))["step"] == 2


def test_another_tokenizer_is_refused_in_the_same_directory(
    tmp_path: Path, data: Path, text_run: Path
) -> None:
    a, b = ([f"tokenizer.path={text_run / name}", "model.vocab_size=300"] for name in "ab")
    blends = {name: f"data.train=[{{path: {text_run}/data_{name}_train}}]" for name in "ab"}
    train_in_world(1, run_config(tmp_path, data, *a, blends["a"], "train.exit_after_steps=1"))
    recorded = (tmp_path / "lineage.json").read_bytes()
    assert "holds a run with the tokenizer" in refusal(run_config(tmp_path, data, *b, blends["b"]))
    assert (tmp_path / "lineage.json").read_bytes() == recorded
    assert load_tokenizer(tmp_path / "tokenizer").hash == load_tokenizer(text_run / "a").hash
    # a process that names no tokenizer does not make the run forget it
    nameless = ["model.vocab_size=300", blends["a"], "train.exit_after_steps=1"]
    train_in_world(1, run_config(tmp_path, data, *nameless))
    assert "holds a run with the tokenizer" in refusal(run_config(tmp_path, data, *b, blends["b"]))


def test_other_data_are_told_and_moved_ones_are_not(tmp_path: Path, data: Path, text_run: Path) -> None:
    for suffix in (".bin", ".idx", ".json"):
        shutil.copyfile(f"{text_run}/data_a_train{suffix}", f"{tmp_path}/moved{suffix}")
    told = []
    for prefix in (
        text_run / "data_a_train",
        tmp_path / "moved",
        data / "valid",
        data / "valid",
    ):
        settings = ["model.vocab_size=300", f"data.train=[{{path: {prefix}}}]"]
        train_in_world(1, run_config(tmp_path / "run", data, *settings, "train.exit_after_steps=1"))
        told.append(sum("data are not those" in event for event in events(tmp_path / "run")))
    assert told == [0, 0, 1, 1]


def test_data_that_change_sides_are_told(tmp_path: Path, data: Path) -> None:
    one, other = (f"{{path: {data}/{name}}}" for name in ("train", "valid"))
    told = []
    for training, validation in ((f"{one}, {other}", other), (one, f"{other}, {other}")):
        overrides = [f"data.train=[{training}]", f"data.valid=[{validation}]", "train.exit_after_steps=1"]
        train_in_world(1, run_config(tmp_path, data, *overrides))
        told.append(sum("data are not those" in event for event in events(tmp_path)))
    assert told == [0, 1]


def test_other_shares_of_a_blend_are_told(tmp_path: Path, data: Path) -> None:
    told = []
    for first, second in ((1, 2), (2, 4), (1, 3)):
        blend = f"[{{path: {data}/train, weight: {first}}}, {{path: {data}/valid, weight: {second}}}]"
        train_in_world(1, run_config(tmp_path, data, f"data.train={blend}", "train.exit_after_steps=1"))
        told.append(sum("data are not those" in event for event in events(tmp_path)))
    assert told == [0, 0, 1]


@pytest.mark.parametrize(
    "override",
    [
        "model.hidden_size=32",
        "model.num_layers=4",
        "model.activation=geglu",
        "model.rope_theta=500000",
        "model.tie_embeddings=true",
        "model.vocab_size=600",
        "run.seed=5",
        "batch.seq_length=16",
        "data.reset_at_document_end=true",
        "data.packing=cut",
    ],
)
def test_another_model_seed_or_length_is_refused_in_the_same_directory(
    data: Path, stopped: Path, override: str
) -> None:
    name = override.partition("=")[0]
    said = refusal(run_config(stopped, data, override))
    assert f"holds a run with {name} " in said and "choose another run.dir" in said


def test_kernels_padding_dropout_and_layout_may_change_on_the_way(
    tmp_path: Path, data: Path, stopped: Path
) -> None:
    """None but dropout changes the losses; the preset's name is no part of the model."""
    settings = {
        "kernels": ("model.attention=plain", "model.norm=plain", "model.cross_entropy=plain"),
        "chunks and padding": (
            "model.cross_entropy_chunk_tokens=8",
            "model.make_vocab_size_divisible_by=64",
            "model.ffn_hidden_size=176",
            "parallel.zero_stage=1",
        ),
        "dropout": ("model.hidden_dropout=0.1", "model.attention_dropout=0.1"),
    }
    losses = {}
    for name, overrides in {"same": (), **settings}.items():
        run = shutil.copytree(stopped, tmp_path / name)
        train_in_world(1, run_config(run, data, *overrides))
        losses[name] = [line["loss"] for line in step_lines(run)][3:]
        assert len(losses[name]) == 5
    for name in ("kernels", "chunks and padding"):
        assert losses[name] == pytest.approx(losses["same"], rel=1e-5)
    assert losses["dropout"] != pytest.approx(losses["same"], rel=1e-5)
    unnamed = load_config(stopped / "config.yaml").model_dump()
    unnamed["model"] |= {"preset": None}
    unnamed["run"] |= {"dir": str(tmp_path / "same")}
    assert train_in_world(1, parse_config(unnamed))["step"] == 8


def test_weights_of_another_run_are_taken_and_nothing_else(tmp_path: Path, data: Path, stopped: Path) -> None:
    """The step, the schedule, the data position and the moments begin anew."""
    validated = ("train.eval_interval=1", "train.exit_after_steps=1")
    still = ("optimizer.lr=1e-9", "optimizer.min_lr=0", "train.steps=2", f"run.load={stopped}")
    goes_on = shutil.copytree(stopped, tmp_path / "goes on")
    train_in_world(1, run_config(goes_on, data, "optimizer.lr=1e-9", "optimizer.min_lr=0", *validated))
    train_in_world(1, run_config(tmp_path / "takes", data, *still, *validated))
    expected = validation_losses(goes_on)[4]
    assert validation_losses(tmp_path / "takes") == {1: pytest.approx(expected, rel=1e-5)}
    checkpoint = find_checkpoint(tmp_path / "takes")
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["counters"] == {"updates": 1, "steps_begun": 1} and state["cursor"]["next_sample"] == 8
    found, donor = stored_tensors(checkpoint), stored_tensors(find_checkpoint(stopped))
    for name, weight in donor.items():
        if not name.startswith("optimizer."):
            assert found[name].allclose(weight, atol=1e-7), name
        elif name.startswith("optimizer.exp_avg."):
            assert not found[name].allclose(weight, rtol=0.1, atol=0), name


def test_run_ends_with_its_figures(tmp_path: Path, data: Path) -> None:
    result = train_in_world(2, run_config(tmp_path, data, TP2, "train.steps=3", "train.eval_interval=2"))
    lines = step_lines(tmp_path)
    assert result == {
        "loss": lines[-1]["loss"],
        "grad_norm": lines[-1]["grad_norm"],
        "valid_loss": validation_losses(tmp_path)[3],
        "valid_perplexity": pytest.approx(math.exp(validation_losses(tmp_path)[3])),
        "step": 3,
        "skipped_steps": 0,
        "rollbacks": 0,
        "run_dir": str(tmp_path),
        "layout": "TP2 x PP1 x DP1",
    }
    assert VOCABULARY == load_config(tmp_path / "config.yaml").model.vocab_size


def test_run_with_a_pipeline_states_its_bubble(tmp_path: Path, data: Path) -> None:
    """(PP - 1) / (VP x microbatches + PP - 1) with 8 / 2 = 4 microbatches."""
    interleaved = (PP2, "parallel.virtual_pipeline_model_parallel_size=2", "model.num_layers=4")
    result = train_in_world(2, run_config(tmp_path, data, *interleaved, "train.steps=2"))
    assert result["layout"] == "TP1 x PP2 (VP2) x DP1"
    start = next(line for line in read_metrics(tmp_path / "metrics.jsonl") if line.get("event") == "start")
    assert start["pipeline_bubble"] == pytest.approx(1 / 9)
