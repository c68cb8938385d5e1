"""The recipes of instruction tuning can be read, and what they ask for works together: task sft with answers measured in the loop."""

import json
from pathlib import Path
from typing import Any

import pytest

from megalm.config import load_config
from megalm.dataset import Extras, build_dataset
from megalm.dataset.chat import ChatSettings
from megalm.tokenizer import train_bpe
from megalm.train.callbacks.metrics import read_metrics
from megalm.train.callbacks.samples import FILE_NAME
from tests.train.runs import train_in_world

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
ALIGN = CONFIGS.with_name("align")
TINY = ["model.num_layers=2", "model.hidden_size=48", "model.ffn_hidden_size=64", "batch.global_batch_size=8"]


@pytest.mark.parametrize(
    "path", sorted([*CONFIGS.glob("*.yaml"), *ALIGN.glob("*.yaml")]), ids=lambda path: path.stem
)
def test_a_recipe_is_valid(path: Path) -> None:
    assert load_config(path).model.architecture in ("gpt", "bert")


def test_held_out_conversations_are_answered_and_measured_from_before_the_first_step(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"The colour of stone {n} is {colour}.\n\nQuestion: what colour?", "completion": colour}
        for n in range(40)
        for colour in ("red", "blue")
    ]
    for name, part in (("train", rows[:-8]), ("held", rows[-8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    train_bpe([tmp_path / "train.jsonl"], 300, tmp_path / "tokenizer", text_key="prompt")
    build_dataset(
        [tmp_path / "train.jsonl"],
        tmp_path / "tokenizer",
        tmp_path / "qa",
        workers=1,
        splits="80,20,0",
        extras=Extras(chat=ChatSettings.of(tmp_path / "tokenizer", "alpaca")),
    )
    changes: dict[str, Any] = {
        "run.dir": tmp_path / "run",
        "run.load": "null",
        "tokenizer.path": tmp_path / "tokenizer",
        "data.train": [{"path": str(tmp_path / "qa_train")}],
        "data.valid": [{"path": str(tmp_path / "qa_valid")}],
        "train.steps": 2,
        "train.eval_interval": 2,
        "train.eval_batches": 1,
        "optimizer.warmup_steps": 1,
        "samples.prompts": tmp_path / "held.jsonl",
        "samples.max_new_tokens": 4,
        "logging": "{tensorboard: false, progress: false, plot: false}",
    }
    train_in_world(1, load_config(CONFIGS / "qa.yaml", [*TINY, *(f"{k}={v}" for k, v in changes.items())]))
    lines = [json.loads(line) for line in (tmp_path / "run" / FILE_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 8 + [2] * 8
    assert lines[0]["references"] == [rows[-8]["completion"]]
    assert "### Instruction" in lines[0]["prompt"] and rows[-8]["prompt"] in lines[0]["prompt"]
    assert lines[0]["prompt"].rstrip().endswith("### Response:"), "the template that the data were built with"
    found = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "valid_loss" in line]
    assert [line["step"] for line in found] == [0, 2]
    assert all(0 <= line["valid_f1"] <= 1 and "valid_exact_match" in line for line in found)
