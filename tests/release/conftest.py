"""A small model in service, and candidates that learned from pairs of answers: from these, and from the same ones exchanged."""

from pathlib import Path

import pytest

from tests.chats import build_chats, write_chats
from tests.preferences import make_pairs, preference_data, preference_run, write_records
from tests.train.runs import train_in_world

RECORDS = make_pairs(96)
SHORT = ("train.eval_interval=0", "data.valid=[]", "batch.micro_batch_size=16")
LEARN = ("train.steps=20", "optimizer.lr=2e-3", "optimizer.min_lr=2e-4")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer and token files, of the pairs and of the pairs exchanged."""
    folder = tmp_path_factory.mktemp("release")
    preference_data(folder, RECORDS, splits="1")
    exchanged = [one | {"chosen": one["rejected"], "rejected": one["chosen"]} for one in RECORDS]
    (folder / "wrong").mkdir()
    (folder / "wrong" / "tokenizer").symlink_to(folder / "tokenizer")
    preference_data(folder / "wrong", exchanged, splits="1")
    return folder


@pytest.fixture(scope="session")
def served(folder: Path) -> Path:
    """A run that was tuned on all answers, good or bad."""
    chats = [
        [{"role": "user", "content": pair["prompt"]}, {"role": "assistant", "content": pair[which]}]
        for pair in RECORDS
        for which in ("chosen", "rejected")
    ]
    build_chats([write_chats(folder / "chats.jsonl", chats)], folder / "tokenizer", folder / "chats")
    config = preference_run("dpo", folder / "served", folder / "data", "task=sft", *SHORT)
    config.data.train[0].path, config.data.packing = f"{folder / 'chats'}_train", "drop"
    train_in_world(1, config)
    return folder / "served"


@pytest.fixture(scope="session")
def better(folder: Path, served: Path) -> Path:
    """A run that learned to prefer the good answers."""
    train_in_world(
        1, preference_run("dpo", folder / "better", folder / "data", f"run.load={served}", *SHORT, *LEARN)
    )
    return folder / "better"


@pytest.fixture(scope="session")
def worse(folder: Path, served: Path) -> Path:
    """A run that learned to prefer the bad ones."""
    data = folder / "wrong" / "data"
    train_in_world(1, preference_run("dpo", folder / "worse", data, f"run.load={served}", *SHORT, *LEARN))
    return folder / "worse"


@pytest.fixture(scope="session")
def held_out(folder: Path) -> Path:
    """Pairs of which none was learned from."""
    return write_records(folder / "held_out.jsonl", make_pairs(40, seed=9))
