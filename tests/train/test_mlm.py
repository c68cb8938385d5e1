"""Task `mlm` from text to a trained encoder: it learns, resumes under another layout, and refuses what does not fit."""

from pathlib import Path
from typing import Any

import pytest

from megalm.checkpoint.inspect import inspect_checkpoint
from megalm.config import Config, parse_config
from megalm.errors import UserError
from megalm.tokenizer import train_bpe
from megalm.train.callbacks.metrics import read_metrics
from tests.bert_text import write_bert_data
from tests.train.runs import PP2, TP2, step_lines, train_in_world, validation_losses

STEPS = 30
SP = "parallel.sequence_parallel=true"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_data(tmp_path_factory.mktemp("text"))


def mlm_config(directory: Path, text: Path, *overrides: str) -> Config:
    sections: dict[str, Any] = {
        "run": {"dir": str(directory)},
        "task": "mlm",
        "model": {"preset": "bert-tiny", "max_sequence_length": 32},
        "tokenizer": {"path": str(text / "vocab.txt")},
        "data": {
            "train": [{"path": str(text / "data_train")}],
            "valid": [{"path": str(text / "data_valid")}],
        },
        "batch": {"seq_length": 32, "micro_batch_size": 4, "global_batch_size": 16},
        "optimizer": {"lr": 5e-3, "min_lr": 5e-4, "warmup_steps": 5},
        "train": {"steps": STEPS, "eval_interval": STEPS},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }
    return parse_config(sections, overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    directory: Path = tmp_path_factory.mktemp("trained")
    train_in_world(1, mlm_config(directory, text))
    return directory


def test_masked_words_are_learned_and_both_losses_reported(trained: Path) -> None:
    lines = [line for line in read_metrics(trained / "metrics.jsonl") if "mlm_loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["sop_loss"])
        # masked tokens: 15% of what is left of 16 rows of 32
        assert 16 < line["weight"] <= round(0.15 * 16 * 29) + 16
    assert lines[0]["mlm_loss"] > 3.5
    assert lines[-1]["mlm_loss"] < 0.6 * lines[0]["mlm_loss"]
    assert validation_losses(trained)[STEPS] < 0.7 * lines[0]["loss"]


@pytest.mark.parametrize("layouts", [((1, ()), (2, (TP2, SP))), ((2, (PP2,)), (2, ()))])
def test_a_run_goes_on_under_another_layout(
    tmp_path: Path, text: Path, trained: Path, layouts: tuple[tuple[int, tuple[str, ...]], ...]
) -> None:
    for world_size, overrides in layouts:
        config = mlm_config(tmp_path, text, f"train.exit_after_steps={STEPS // 2}", *overrides)
        train_in_world(world_size, config)
    found, expected = step_lines(tmp_path), step_lines(trained)
    assert len(found) == STEPS
    for left, right in zip(found, expected, strict=True):
        assert left["weight"] == right["weight"]
        assert left["loss"] == pytest.approx(right["loss"], rel=2e-4)
    assert validation_losses(tmp_path)[STEPS] == pytest.approx(validation_losses(trained)[STEPS], rel=2e-4)


@pytest.mark.parametrize(
    "override",
    [
        "mlm.mask_probability=0.3",
        "mlm.whole_word=false",
        "mlm.sentence_objective=nsp",
        "mlm.short_sequence_probability=0.5",
    ],
)
def test_another_way_to_make_samples_is_refused_in_the_same_directory(
    trained: Path, text: Path, override: str
) -> None:
    from megalm.train import run

    with pytest.raises(UserError, match=f"holds a run with {override.partition('=')[0]} "):
        run.main(mlm_config(trained, text, override))


def test_checkpoints_list_the_encoders_tensors(trained: Path) -> None:
    report = inspect_checkpoint(trained)
    model = report["model"]
    assert model["architecture"] == "bert" and model["norm_position"] == "post"
    shapes = {name: tuple(tensor["shape"]) for name, tensor in report["tensors"].items()}
    assert shapes["embedding.tokentype_embeddings.weight"] == (2, 64)
    assert shapes["output_layer.bias"] == (model["vocab_size"],)
    assert shapes["encoder.layers.post_mlp_layernorm.weight"] == (2, 64)


def test_an_encoder_without_sentence_head_trains_on_single_segments(tmp_path: Path, text: Path) -> None:
    config = mlm_config(tmp_path, text, "model.sentence_head=false", "train.exit_after_steps=2")
    train_in_world(1, config)
    lines = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [line["mlm_loss"] for line in lines if "mlm_loss" in line] == [
        line["loss"] for line in step_lines(tmp_path)
    ]
    assert not any("sop_loss" in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.position_embedding=alibi",), "use `learned` or `rope`"),
        (("parallel.context_parallel_size=2",), "sees the whole text at once"),
        (("batch.seq_length=4",), "leaves no text"),
        (("data.reset_at_document_end=true",), "lie within one document"),
        (("data.packing=drop",), "data.packing `drop`: .* one or two segments"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    tmp_path: Path, text: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        mlm_config(tmp_path, text, *overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=pretrain", "task `pretrain` trains model.architecture `gpt`"),
        ("model.preset=gpt2-tiny", "task `mlm` trains model.architecture `bert`"),
    ],
)
def test_a_task_refuses_another_architecture(tmp_path: Path, text: Path, override: str, message: str) -> None:
    from megalm.train import run

    with pytest.raises(UserError, match=message):
        run.main(mlm_config(tmp_path / "run", text, override))


def test_a_tokenizer_without_masks_and_no_tokenizer_are_refused(tmp_path: Path, text: Path) -> None:
    from megalm.train import run

    train_bpe([text / "text.jsonl"], 280, tmp_path / "bpe")
    with pytest.raises(UserError, match=r"has no token \[CLS\]"):
        run.main(mlm_config(tmp_path / "run", text, f"tokenizer.path={tmp_path / 'bpe'}"))
    with pytest.raises(UserError, match=r"set tokenizer\.path"):
        run.main(mlm_config(tmp_path / "run", text, "tokenizer.path=null"))
    assert not (tmp_path / "run").exists()
