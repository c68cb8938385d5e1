"""Task `classify` from labelled text to a classifier: it learns, validates on each text once, alike under every layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megalm.config import Config, parse_config
from megalm.dataset.labelled import build_labelled
from megalm.errors import UserError
from megalm.generate.request import ClassifyRequest, GenerateRequest
from megalm.generate.texts import read_texts
from megalm.testing import run_distributed
from megalm.train.callbacks.metrics import read_metrics
from megalm.train.classify import complete
from tests.bert_text import WORDS, write_bert_data
from tests.train.runs import PP2, TP2, events, train_in_world

CP2 = "parallel.context_parallel_size=2"

STEPS = 40
LABELS = ["water", "land"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two classes, told apart by one of their words: twice as many of `land`."""
    directory = write_bert_data(tmp_path_factory.mktemp("text"))
    random = np.random.default_rng(1)
    water, land = ["sea", "river", "harbour"], ["wood", "stone", "mountain", "garden"]
    rows = []
    for number in range(150):
        label = LABELS[number % 3 > 0]
        words = ["the", *random.choice(["hand", "winter", "evening"], int(random.integers(1, 9)))]
        words.insert(
            int(random.integers(len(words))), str(random.choice(water if label == "water" else land))
        )
        rows.append({"text": " ".join(map(str, words)), "label": label})
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_labelled([file], directory / "vocab.txt", directory / "rows", labels=LABELS, splits="70,30")
    assert set(WORDS) >= {*water, *land}
    return directory


def configuration(directory: Path, text: Path, *overrides: str) -> Config:
    sections: dict[str, Any] = {
        "run": {"dir": str(directory)},
        "task": "classify",
        "model": {"preset": "llama-tiny", "max_sequence_length": 16, "tie_embeddings": True},
        "tokenizer": {"path": str(text / "vocab.txt")},
        "data": {split: [{"path": str(text / f"rows_{split}")}] for split in ("train", "valid")},
        "batch": {"seq_length": 16, "micro_batch_size": 4, "global_batch_size": 16},
        "optimizer": {"lr": 5e-3, "min_lr": 5e-4, "warmup_steps": 5},
        "train": {"steps": STEPS, "eval_interval": STEPS},
        "logging": {"tensorboard": False, "progress": False, "plot": True},
    }
    return parse_config(sections, overrides)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    directory: Path = tmp_path_factory.mktemp("trained")
    options = ("classify.class_weights=balanced", "train.eval_by_source=true")
    train_in_world(1, configuration(directory, text, *options))
    return directory


def validation(directory: Path) -> dict[str, float]:
    return [line for line in read_metrics(directory / "metrics.jsonl") if "valid_loss" in line][-1]


def test_a_classifier_is_learned_and_every_text_validated_once(trained: Path, text: Path) -> None:
    found = validation(trained)
    assert found["valid_accuracy"] > 0.9 and found["valid_loss"] < 0.3
    assert found["valid_loss_rows_valid"] == found["valid_loss"]
    assert not any("perplexity" in name for name in found), "no tokens are predicted"
    report = json.loads((trained / "classification.json").read_text())
    counts = held_out_counts(text)
    assert sum(counts.values()) % 16, "the last batch is to be filled up"
    assert {label: of["support"] for label, of in report["classes"].items()} == counts
    assert np.array(report["confusion"]).sum(1).tolist() == [counts[label] for label in LABELS]
    assert found["valid_accuracy"] == report["accuracy"]
    assert found["valid_f1_land"] == report["classes"]["land"]["f1"]
    assert (trained / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def held_out_counts(text: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((text / "rows_valid.json").read_text())["label_counts"]
    return found


def classify(directory: Path, changes: dict[str, Any]) -> dict[str, Any]:
    from megalm.generate import classify as command

    return command.main(ClassifyRequest(**{"checkpoint": str(directory), **changes}))


def held_out(text: Path) -> tuple[list[tuple[str, ...]], list[str | None]]:
    from megalm.dataset.labelled import labelled_splits

    (_, valid, _), _ = labelled_splits([text / "rows.jsonl"], labels=LABELS, splits="70,30")
    return [sample.texts for sample in valid], [sample.label for sample in valid]


def test_predictions_are_those_of_the_validation_under_every_layout(trained: Path, text: Path) -> None:
    texts, truth = held_out(text)
    (alone,) = run_distributed(classify, 1, trained, {"texts": texts, "truth": truth})
    report = json.loads((trained / "classification.json").read_text())
    assert alone["measures"]["classes"] == report["classes"]
    probabilities = np.array([list(p["probabilities"].values()) for p in alone["predictions"]])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    weights = {"water": 1.5, "land": 0.75}
    of_texts = np.array([weights[label] for label in truth if label])
    of_truth = probabilities[np.arange(len(truth)), [LABELS.index(str(label)) for label in truth]]
    loss = -(of_texts * np.log(of_truth)).sum() / of_texts.sum()
    assert loss == pytest.approx(validation(trained)["valid_loss"], rel=1e-2), (
        "weights are of the training data"
    )

    (fp64,) = run_distributed(classify, 1, trained, {"texts": texts, "dtype": "fp64"})
    for size in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "batch_size"):
        changes = {size: 2, "texts": texts, "dtype": "fp64"}
        for found in run_distributed(classify, 2, trained, changes):
            for mine, theirs in zip(found["predictions"], fp64["predictions"], strict=True):
                assert mine["label"] == theirs["label"]
                assert mine["probabilities"] == pytest.approx(theirs["probabilities"], rel=1e-9)


EXACT = (
    "precision.dtype=fp64",
    "train.steps=6",
    "train.eval_interval=6",
    "classify.class_weights={land: 0.5}",
)


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, float]:
    directory = tmp_path_factory.mktemp("exact")
    train_in_world(1, configuration(directory, text, *EXACT))
    return validation(directory)


@pytest.mark.parametrize("layout", [(TP2,), (PP2,), (CP2,), ()], ids=["TP2", "PP2", "CP2", "DP2"])
def test_validation_is_the_same_under_every_layout(
    layout: tuple[str, ...], in_one_process: dict[str, float], text: Path, tmp_path: Path
) -> None:
    train_in_world(2, configuration(tmp_path, text, *EXACT, *layout))
    assert validation(tmp_path) == pytest.approx(in_one_process, rel=1e-10)
    report = json.loads((tmp_path / "classification.json").read_text())
    rows = np.sum(report["confusion"], axis=1).tolist()
    assert dict(zip(LABELS, rows, strict=True)) == held_out_counts(text), "each text once, by its class"
    assert 0 < in_one_process["valid_accuracy"] < 1


def test_a_pretrained_body_is_taken_over_and_the_head_is_new(text: Path, tmp_path: Path) -> None:
    base = ["task=mlm", "model.preset=bert-tiny", "model.tie_embeddings=true"]
    data = [f"data.{split}=[{{path: {text}/data_{split}}}]" for split in ("train", "valid")]
    short = ["train.steps=1", "train.eval_interval=0", "optimizer.warmup_steps=0"]
    train_in_world(1, configuration(tmp_path / "base", text, *base, *data, *short))
    from megalm.convert.run import convert
    from megalm.generate.load import open_model  # they import torch

    load = ["model.preset=bert-tiny", *short]
    first = f"run.load={tmp_path / 'base'}"
    train_in_world(2, configuration(tmp_path / "head", text, *load, first, PP2))
    assert f"{tmp_path / 'base'} has no sequence head: this one's is new" in events(tmp_path / "head")
    train_in_world(1, configuration(tmp_path / "again", text, *load, f"run.load={tmp_path / 'head'}"))
    assert not any("is new" in event for event in events(tmp_path / "again"))
    generate = GenerateRequest(checkpoint=str(tmp_path / "head"), prompts=["x"])
    with pytest.raises(UserError, match="holds a classifier: use `megalm classify`"):
        open_model(generate, "gpt")
    with pytest.raises(UserError, match="`bert` without a sequence head: use `megalm embed`"):
        open_model(ClassifyRequest(checkpoint=str(tmp_path / "base"), texts=[("x",)]), "classifier")
    with pytest.raises(UserError, match="a sequence head of 2 outputs, which is not converted"):
        convert(tmp_path / "head", tmp_path / "hf")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["classify.labels=[water, wind]"], r"that the classes water, wind lack: 'land'"),
        (["classify.class_weights={lnd: 2}"], "names 'lnd'.*land"),
        (["classify.class_weights={land: 0}"], "classify.class_weights.land is 0"),
        (["model.sequence_head.outputs=3"], "outputs is 3, and there are 2 classes"),
        (["data.train=[{path: DATA/data_train}]"], "data_train has no labels"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    overrides: list[str], message: str, text: Path, tmp_path: Path
) -> None:
    from megalm.tokenizer import load_tokenizer
    from megalm.train.classify import open_every

    config = configuration(tmp_path, text, *(one.replace("DATA", str(text)) for one in overrides))
    with pytest.raises(UserError, match=message):
        open_every(complete(config), config.data.valid, load_tokenizer(text / "vocab.txt"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=pretrain", "model.sequence_head.outputs=2"], "takes the place of the vocabulary's head"),
        (["model.sequence_head.pooling=first"], "sees no other"),
        (["data.packing=cut"], "samples of task `classify` are whole documents"),
        (["lora.rank=4", "run.load=x"], "adapters do not train the new head"),
    ],
)
def test_what_does_not_go_together_is_refused(
    overrides: list[str], message: str, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        configuration(tmp_path, text, *overrides)


def test_texts_are_read_from_files_of_every_kind(tmp_path: Path) -> None:
    from megalm.dataset.labelled import Columns

    (tmp_path / "lines").write_text("one\n\n two \n")
    (tmp_path / "rows.tsv").write_text("ham\tthree\n")
    (tmp_path / "rows.jsonl").write_text('{"text": "four"}\n')
    plain = Columns("text", "")
    assert read_texts([str(tmp_path / "lines"), str(tmp_path / "rows.jsonl")], plain, None, ["zero"]) == (
        [("zero",), ("one",), ("two",), ("four",)],
        [None] * 4,
    )
    assert read_texts([str(tmp_path / "rows.tsv")], Columns("2", "1"), None, []) == ([("three",)], ["ham"])
    with pytest.raises(UserError, match="line 1 has no text under 'body'"):
        read_texts([str(tmp_path / "rows.jsonl")], Columns("body", ""), None, [])
    with pytest.raises(UserError, match="line 1 has no label under 'label'"):
        read_texts([str(tmp_path / "rows.jsonl")], Columns("text", "label"), None, [])
