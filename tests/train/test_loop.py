"""The loop learns, validates, keeps to the schedule, stops when told and goes on where it stopped."""

import json
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.nn import functional

from megalm.checkpoint import find_checkpoint
from megalm.config import Config
from megalm.engine.schedule import learning_rate
from megalm.testing import run_distributed
from megalm.train.callbacks.base import Callback, Run, StepRecord
from megalm.train.callbacks.metrics import read_metrics
from tests.train.runs import (
    GLOBAL_BATCH,
    LAYOUTS,
    SEQUENCE,
    VOCABULARY,
    ZERO1,
    events,
    run_config,
    step_lines,
    train_in_world,
    validation_losses,
)

FP64_LAYOUTS = {name: layout for name, layout in LAYOUTS.items() if ZERO1 not in layout[1]} | {"DP2": (2, ())}


def test_loss_falls(tmp_path: Path, data: Path) -> None:
    """From knowing nothing to below what knowing the tokens' frequencies gives: the model uses the token before."""
    config = run_config(tmp_path, data, "train.steps=60", "train.eval_interval=60", "optimizer.lr=1e-2")
    result = train_in_world(1, config)
    losses = [line["loss"] for line in step_lines(tmp_path)]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.02)
    assert max(losses[-5:]) < math.log(97) - 1
    assert result["valid_loss"] < math.log(97) - 1
    assert result["step"] == 60 and result["loss"] == losses[-1]


def test_learning_rate_is_the_schedules_whatever_the_stops(tmp_path: Path, data: Path) -> None:
    config = run_config(tmp_path, data, "train.exit_after_steps=3")
    for _ in range(3):
        train_in_world(1, config)
    expected = [learning_rate(config.optimizer, step, 8) for step in range(1, 9)]
    assert [line["lr"] for line in step_lines(tmp_path)] == expected
    assert len(set(expected)) == 8


def test_run_stops_after_so_many_steps_of_this_process_and_at_its_end(tmp_path: Path, data: Path) -> None:
    config = run_config(tmp_path, data, "train.exit_after_steps=3")
    assert [train_in_world(1, config)["step"] for _ in range(4)] == [3, 6, 8, 8]
    saved = [event for event in events(tmp_path) if event.endswith("saved")]
    assert saved == [f"checkpoint of step {step} saved" for step in (3, 6, 8)]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumed_run_leaves_the_files_of_an_undisturbed_one(
    tmp_path: Path, data: Path, prefetch: int
) -> None:
    """Metrics, validations and the saved data position, with batches read ahead when it stopped."""
    settings = ("train.eval_interval=3", "checkpoint.interval=2", f"data.prefetch={prefetch}", ZERO1)
    train_in_world(2, run_config(tmp_path / "whole", data, *settings))
    for _ in range(2):
        train_in_world(2, run_config(tmp_path / "parts", data, *settings, "train.exit_after_steps=5"))
    assert step_lines(tmp_path / "parts") == step_lines(tmp_path / "whole")
    assert validation_losses(tmp_path / "parts") == validation_losses(tmp_path / "whole")
    assert list(validation_losses(tmp_path / "whole")) == [3, 6, 8]
    parts, whole = (
        json.loads((find_checkpoint(tmp_path / name) / "state.json").read_text())
        for name in ("parts", "whole")
    )
    assert parts == whole
    assert whole["cursor"] == {"next_sample": 8 * GLOBAL_BATCH, "skipped": []}


def plain_validation_loss(config: Config, checkpoint: Path) -> float:
    """Mean cross entropy of the first samples of the validation data, from logits and torch's own formula."""
    from megalm.checkpoint import load_weights
    from megalm.engine.base import split_samples
    from megalm.train.data import open_stream
    from tests.tiny import tiny_engine

    engine = tiny_engine(config)
    load_weights(engine, checkpoint)
    batch = open_stream(config, config.data.valid, None).batch(torch.arange(3 * GLOBAL_BATCH).numpy())
    microbatches = split_samples(batch, engine.layout, GLOBAL_BATCH)
    logits_BSV = torch.cat(
        engine.forward(
            microbatches, lambda model, m: model(m.tokens_BS, m.forward_state()), lambda out, _: out
        )
    )
    labels_BS = torch.cat([microbatch.labels_BS for microbatch in microbatches])
    assert logits_BSV.shape == (3 * GLOBAL_BATCH, SEQUENCE, VOCABULARY)
    return functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten()).item()


def test_validation_is_the_same_number_under_every_layout(tmp_path: Path, data: Path) -> None:
    settings = ("train.steps=4", "train.eval_interval=2", "train.eval_batches=3", "precision.dtype=fp64")
    losses = {}
    for name, (world_size, overrides) in FP64_LAYOUTS.items():
        config = run_config(tmp_path / name, data, *settings, *overrides)
        train_in_world(world_size, config)
        losses[name] = validation_losses(tmp_path / name)
        assert list(losses[name]) == [2, 4]
        assert list(losses[name].values()) == pytest.approx(list(losses["one process"].values()), rel=1e-10)
    config = run_config(tmp_path / "one process", data, *settings)
    checkpoint = find_checkpoint(tmp_path / "one process")
    plain = run_distributed(plain_validation_loss, 1, config, checkpoint)[0]
    assert losses["one process"][4] == pytest.approx(plain, rel=1e-10)
    perplexities = [
        line["valid_perplexity"]
        for line in read_metrics(tmp_path / "one process" / "metrics.jsonl")
        if "valid_loss" in line
    ]
    assert perplexities[-1] == pytest.approx(math.exp(plain))


def test_validation_leaves_training_alone(tmp_path: Path, data: Path) -> None:
    settings = ("model.preset=gpt2-tiny", "model.hidden_dropout=0.1")
    train_in_world(1, run_config(tmp_path / "without", data, *settings))
    train_in_world(1, run_config(tmp_path / "with", data, *settings, "train.eval_interval=1"))
    assert step_lines(tmp_path / "with") == step_lines(tmp_path / "without")


class Fragile(Callback):
    """Fails in one of its methods; says in a file that it was ended."""

    def __init__(self, fails_in: str, ended: Path) -> None:
        self.fails_in, self.ended = fails_in, ended

    def on_start(self, run: Run) -> None:
        if self.fails_in == "on_start":
            raise ValueError("the failure in on_start")

    def on_step(self, run: Run, record: StepRecord) -> None:
        if self.fails_in == "on_step":
            raise ValueError("the failure in on_step")

    def on_end(self, run: Run) -> None:
        with self.ended.open("a") as file:
            file.write(f"{self.fails_in}\n")
        if self.fails_in.startswith("on_end"):
            raise KeyError(f"the failure in {self.fails_in}")


def train_with(config: Config, ended: Path, fails: list[str]) -> str:
    """What a run with such callbacks fails with."""
    from megalm.train import run

    with mock.patch.object(run, "standard_callbacks", lambda _: [Fragile(name, ended) for name in fails]):
        try:
            run.main(config)
        except Exception as error:
            return repr(error)
    return ""


@pytest.mark.parametrize(
    ("fails", "error"),
    [
        (["on_end", "on_start", ""], "ValueError('the failure in on_start')"),
        (["on_end", "on_step", ""], "ValueError('the failure in on_step')"),
        (["on_end", "", "on_end 2"], "KeyError('the failure in on_end')"),
        (["", ""], ""),
    ],
)
def test_every_callback_is_ended_and_the_first_error_is_the_one_told(
    tmp_path: Path, data: Path, fails: list[str], error: str
) -> None:
    config = run_config(tmp_path / "run", data, "train.exit_after_steps=1")
    assert run_distributed(train_with, 1, config, tmp_path / "ended", fails) == [error]
    assert (tmp_path / "ended").read_text().splitlines() == fails


def test_validation_runs_without_dropout(tmp_path: Path, data: Path) -> None:
    """Weights that stand still give the same number each time."""
    settings = (
        "model.preset=gpt2-tiny",
        "model.hidden_dropout=0.5",
        "optimizer.lr=1e-12",
        "optimizer.min_lr=0",
    )
    train_in_world(1, run_config(tmp_path, data, *settings, "train.steps=3", "train.eval_interval=1"))
    first, *others = validation_losses(tmp_path).values()
    assert others == pytest.approx([first] * 2, rel=1e-6)
    losses = [line["loss"] for line in step_lines(tmp_path)]
    assert losses != pytest.approx([first] * 3, rel=1e-4)
