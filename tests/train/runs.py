"""Token files, configurations and whole runs, so small that a test can afford several."""

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from megalm.config import Config, parse_config
from megalm.dataset import IndexedDatasetWriter
from megalm.testing import run_distributed
from megalm.train.callbacks.base import Callback
from megalm.train.callbacks.classification import ClassificationReport
from megalm.train.callbacks.metrics import MetricsFile, read_metrics
from megalm.train.callbacks.preferences import RewardReport

VOCABULARY = 509  # prime: no number of ranks divides it
SEQUENCE = 32
GLOBAL_BATCH, MICRO_BATCH = 8, 2

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
ZERO1 = "parallel.zero_stage=1"
# Processes, and what spreads the model over them; what is left of the processes are copies (DP).
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "one process": (1, ()),
    "TP2": (2, (TP2,)),
    "PP2": (2, (PP2,)),
    "DP2+ZeRO-1": (2, (ZERO1,)),
    "TP2xPP2": (4, (TP2, PP2)),
}
DEEPSPEED = "engine=deepspeed"
DEEPSPEED_LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "DeepSpeed, one process": (1, (DEEPSPEED,)),
    "DeepSpeed, DP2": (2, (DEEPSPEED,)),
    "DeepSpeed, ZeRO-1": (2, (DEEPSPEED, ZERO1)),
    "DeepSpeed, ZeRO-2": (2, (DEEPSPEED, "parallel.zero_stage=2")),
    "DeepSpeed, ZeRO-3": (2, (DEEPSPEED, "parallel.zero_stage=3")),
    "DeepSpeed, ZeRO-2 x TP2": (4, (DEEPSPEED, "parallel.zero_stage=2", TP2)),
    "DeepSpeed, ZeRO-3 x TP2": (4, (DEEPSPEED, "parallel.zero_stage=3", TP2)),
}
ALL_LAYOUTS = LAYOUTS | DEEPSPEED_LAYOUTS


def write_tokens(directory: Path) -> Path:
    """Token files `train` and `valid` in `directory`: documents whose next token mostly follows from the last."""
    random = np.random.default_rng(0)
    for name, documents in (("train", 500), ("valid", 60)):
        with IndexedDatasetWriter(directory / name, np.dtype("<u2")) as writer:
            for length in random.integers(10, 60, documents):
                token, tokens = int(random.integers(97)), []
                for surprise in random.random(length) < 0.1:
                    token = int(random.integers(97)) if surprise else (5 * token + 7) % 97
                    tokens.append(token)
                writer.add_document(np.array(tokens))
    return directory


def run_config(directory: Path, data: Path, *overrides: str) -> Config:
    """A run of 8 steps of a 2-layer model in `directory` on what `write_tokens` made, in fp32 and silent."""
    sections: dict[str, Any] = {
        "run": {"dir": str(directory)},
        "model": {"preset": "llama-tiny", "vocab_size": VOCABULARY, "max_sequence_length": SEQUENCE},
        "data": {"train": [{"path": str(data / "train")}], "valid": [{"path": str(data / "valid")}]},
        "batch": {
            "seq_length": SEQUENCE,
            "micro_batch_size": MICRO_BATCH,
            "global_batch_size": GLOBAL_BATCH,
        },
        "optimizer": {"lr": 5e-3, "min_lr": 5e-4, "warmup_steps": 2},
        "train": {"steps": 8},
        "logging": {"tensorboard": False, "progress": False, "plot": False},
    }
    return parse_config(sections, overrides)


def train(config: Config) -> dict[str, Any]:
    """What `megalm train` does on each rank, less the command line and the measurement of the machine's speed."""
    from megalm.train import run

    reports: dict[str, type[Callback]] = {"classify": ClassificationReport, "reward": RewardReport}
    callbacks = [reports[config.task]()] if config.task in reports else []
    with mock.patch.object(run, "standard_callbacks", lambda _: [*callbacks, MetricsFile()]):
        return run.main(config)


def train_in_world(world_size: int, config: Config) -> dict[str, Any]:
    """Run `train` on all ranks of a world; they return the same."""
    results = run_distributed(train, world_size, config)
    assert all(result == results[0] for result in results)
    return results[0]


def step_lines(directory: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step, without what depends on the clock."""
    names = ("step", "loss", "grad_norm", "lr", "tokens", "weight", "skipped")
    lines = read_metrics(directory / "metrics.jsonl")
    return [{name: line[name] for name in names} for line in lines if "loss" in line]


def validation_losses(directory: Path) -> dict[int, float]:
    """Validation loss by step."""
    lines = read_metrics(directory / "metrics.jsonl")
    return {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line}


def events(directory: Path) -> list[str]:
    """What the run told, less its starts."""
    lines = read_metrics(directory / "metrics.jsonl")
    return [line["event"] for line in lines if "event" in line and line["event"] != "start"]
