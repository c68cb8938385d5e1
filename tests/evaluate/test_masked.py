"""A masked model prefers texts by the pseudo-log-likelihood of what they share: as Hugging Face's model gives it, word by word."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertForPreTraining

from megalm.cli import main
from megalm.convert.run import convert
from megalm.testing import run_distributed
from megalm.tokenizer import Tokenizer, load_tokenizer
from tests.bert_text import write_bert_data
from tests.evaluate.safe import TASKS
from tests.evaluate.small import SEED, evaluate, write_rows
from tests.tiny import tiny_config, tiny_engine

PAIRS = [
    {"more": "the sea of woods", "less": "the garden of woods", "kind": "a"},
    {"more": "winter of the stones", "less": "the harbour of rivers of the stones", "kind": "a"},
    {"more": "the sea", "less": "the sea", "kind": "b"},
]


def save_random_model(directory: Path, vocabulary: int) -> None:
    from megalm.checkpoint import CheckpointWriter

    size, form = (
        f"model.vocab_size={vocabulary}",
        ("model.init_method_std=0.2", "checkpoint.async_save=false"),
    )
    config = tiny_config("bert-tiny", "task=mlm", size, *form, SEED)
    engine = tiny_engine(config)
    CheckpointWriter(directory, config, engine).save(7, {"step": 7, "counters": engine.counters})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("run")
    write_bert_data(directory)
    (directory / "tokenizer").mkdir()
    (directory / "vocab.txt").rename(directory / "tokenizer" / "vocab.txt")
    run_distributed(save_random_model, 1, directory, load_tokenizer(directory / "tokenizer").vocab_size)
    write_rows(directory / "pairs.jsonl", PAIRS)
    told = {
        "pairs": TASKS["pairs"],
        "first": {
            "kind": "choice",
            "prompt": "{{ more }}",
            "choices": "[less, more]",
            "answer": "0",
            "metrics": ["acc"],
        },
    }
    for name, task in told.items():
        text = yaml.safe_dump({"name": name, "data": "pairs.jsonl", **task}, sort_keys=False)
        (directory / f"{name}.yaml").write_text(text)
    return directory


def ask(run: Path, output: Path, changes: dict[str, Any]) -> dict[str, Any]:
    return evaluate(str(run), str(output), data=run, **{"tasks": ["pairs"], **changes})


def pseudo_likelihood(model: Any, tokenizer: Tokenizer, text: str, shared: list[int]) -> float:
    ids = [tokenizer.token_id("[CLS]"), *tokenizer.encode(text), tokenizer.token_id("[SEP]")]
    total = 0.0
    for place in shared:
        masked = torch.tensor([ids])
        masked[0, place + 1] = tokenizer.token_id("[MASK]")
        with torch.no_grad():
            total += float(model(masked).prediction_logits[0, place + 1].log_softmax(-1)[ids[place + 1]])
    return total


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (1, {}),
        (2, {"batch_size": 3}),
        (2, {"tensor_model_parallel_size": 2}),
        (2, {"pipeline_model_parallel_size": 2}),
    ],
    ids=["alone", "DP2", "TP2", "PP2"],
)
def test_pseudo_likelihoods_equal_hugging_faces_under_every_layout(
    run: Path, tmp_path: Path, world: int, changes: dict[str, Any]
) -> None:
    convert(run, tmp_path / "hf", compare=False)
    model = BertForPreTraining.from_pretrained(tmp_path / "hf", dtype=torch.float64).eval()
    tokenizer = load_tokenizer(run / "tokenizer")
    words = [(row["more"].split(), row["less"].split()) for row in PAIRS]
    assert all(len(tokenizer.encode(" ".join(one))) == len(one) for pair in words for one in pair)
    shared = [
        ([0, 2, 3], [0, 2, 3]),
        ([1, 2, 3], [4, 5, 6]),
        ([0, 1], [0, 1]),
    ]  # of the second pair `of the stones`
    scores = [
        [
            pseudo_likelihood(model, tokenizer, " ".join(one), places)
            for one, places in zip(pair, own, strict=True)
        ]
        for pair, own in zip(words, shared, strict=True)
    ]
    found = run_distributed(ask, world, run, tmp_path / "out", changes)[0]["tasks"]["pairs"]
    values = {name: score["value"] for name, score in found["metrics"].items()}
    differences = [more - less for more, less in scores]
    assert values["difference"] == pytest.approx(sum(differences) / 3, rel=1e-6)
    assert values["distance"] == pytest.approx(sum(map(abs, differences)) / 3, rel=1e-6)
    assert values["preference"] == pytest.approx((sum(one > 0 for one in differences[:2]) + 0.5) / 3)
    again = run_distributed(ask, 1, run, tmp_path / "out", {})[0]["asked"]
    assert again["answered_before"] == again["questions"] == 6


def test_a_masked_model_is_asked_nothing_but_pairs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--tasks",
        "pairs,first",
        "--task-folder",
        str(run),
        "--data",
        str(run),
        "--output",
        str(tmp_path),
    ]
    assert main(["eval", str(run), *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "holds a masked model, which is asked tasks of kind `pairs` alone (crows_pairs): leave first out"
        in line
    )
