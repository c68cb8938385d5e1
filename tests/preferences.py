"""Preference records, a tokenizer and token files of them, so small that every test can afford them."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from megalm.config import Config, parse_config
from megalm.dataset.chat import ChatSettings
from megalm.dataset.preferences import build_preferences
from megalm.train.callbacks.metrics import read_metrics
from tests.chats import make_tokenizer
from tests.tokenizer.test_bpe import WORDS

GOOD, BAD = WORDS[0], WORDS[1]


def make_pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs whose chosen answer has the word GOOD where the rejected one, of another length mostly, has BAD."""
    random = Random(seed)

    def words(low: int, high: int) -> list[str]:
        return random.choices(WORDS[2:], k=random.randint(low, high))

    records = []
    for number in range(count):
        answers = []
        for word in (GOOD, BAD):
            answer = words(1, 6)
            answer.insert(random.randint(0, len(answer)), word)
            answers.append(" ".join(answer))
        prompt = f"{number} {' '.join(words(1, 8))}"
        records.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return records


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def preference_data(
    folder: Path, records: Sequence[dict[str, Any]], splits: str = "80,20", **settings: Any
) -> Path:
    """A tokenizer in `folder`, and token files PREFIX_train and _valid of the records; returns the prefix."""
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        make_tokenizer(folder)
    chat = ChatSettings.of(tokenizer, "chatml", train_on="last", **settings)
    file = write_records(folder / "records.jsonl", records)
    build_preferences([file], tokenizer, folder / "data", chat, splits=splits, overwrite=True)
    return folder / "data"


LENGTH = 96


def preference_run(task: str, directory: Path, prefix: Path, *overrides: str) -> Config:
    """A run of task `reward` or `dpo` on what `preference_data` made, silent."""
    sections: dict[str, Any] = {
        "run": {"dir": str(directory)},
        "task": task,
        "model": {"preset": "llama-tiny", "max_sequence_length": LENGTH},
        "tokenizer": {"path": str(prefix.parent / "tokenizer")},
        "data": {split: [{"path": f"{prefix}_{split}"}] for split in ("train", "valid")},
        "batch": {"seq_length": LENGTH, "micro_batch_size": 4, "global_batch_size": 16},
        "optimizer": {"lr": 3e-3, "min_lr": 3e-4, "warmup_steps": 4},
        "train": {"steps": 40, "eval_interval": 40},
        "logging": {"tensorboard": False, "progress": False, "plot": True},
    }
    return parse_config(sections, overrides)


def validation(directory: Path) -> dict[str, float]:
    """The last validation's figures."""
    lines = read_metrics(directory / "metrics.jsonl")
    return {k: v for line in lines if "valid_loss" in line for k, v in line.items() if k.startswith("valid")}
