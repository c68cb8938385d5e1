"""Validation before the first step, and of each source by itself."""

from pathlib import Path

import numpy as np

from megalm.config.schema import DataSource
from megalm.dataset import IndexedDatasetWriter
from megalm.train.callbacks.metrics import read_metrics
from megalm.train.callbacks.sources import source_names
from tests.train.runs import run_config, train_in_world, validation_losses


def test_each_source_has_the_loss_that_it_has_alone_also_before_the_first_step(
    tmp_path: Path, data: Path
) -> None:
    with IndexedDatasetWriter(tmp_path / "other", np.dtype("<u2")) as writer:
        for start in range(40):
            writer.add_document(np.arange(start, start + 30))
    at_start = [
        "train.steps=1",
        "optimizer.warmup_steps=1",
        "train.eval_interval=1",
        "train.eval_batches=1",
        "train.eval_at_start=true",
    ]
    paths = {"valid": str(data / "valid"), "other": str(tmp_path / "other")}
    both = "data.valid=[" + ", ".join(f"{{path: {path}}}" for path in paths.values()) + "]"
    train_in_world(1, run_config(tmp_path / "both", data, *at_start, both, "train.eval_by_source=true"))
    lines = [line for line in read_metrics(tmp_path / "both" / "metrics.jsonl") if "valid_loss" in line]
    assert [line["step"] for line in lines] == [0, 1]
    for name, path in paths.items():
        alone = tmp_path / f"alone_{name}"
        train_in_world(1, run_config(alone, data, *at_start, f"data.valid=[{{path: {path}}}]"))
        found = {line["step"]: line[f"valid_loss_{name}"] for line in lines}
        assert found == validation_losses(alone)
        assert lines[0][f"valid_perplexity_{name}"] > 1
    assert lines[0]["valid_loss_valid"] != lines[0]["valid_loss_other"]


def test_sources_are_named_by_their_files_and_by_folders_where_these_are_alike() -> None:
    def names(*paths: str) -> list[str]:
        return source_names([DataSource(path=path) for path in paths])

    assert names("data/a_valid", "b_valid") == ["a_valid", "b_valid"]
    assert names("law/valid", "code/valid") == ["law/valid", "code/valid"]
    assert names("a", "a") == ["a.0", "a.1"]
