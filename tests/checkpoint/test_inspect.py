"""`megalm inspect` lists a checkpoint's tensors with their full shapes, without reading them."""

import json
import math
import shutil
from pathlib import Path

import pytest

from megalm import cli
from megalm.checkpoint.inspect import inspect_checkpoint
from megalm.config.model import ModelConfig
from megalm.testing import run_distributed
from tests.checkpoint.stored import stored_tensors
from tests.tiny import tiny_config, tiny_model
from tests.train.runs import LAYOUTS, VOCABULARY, run_config, train_in_world


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run under TP2 x PP2 in bf16 with checkpoints of steps 2 and 4."""
    directory: Path = tmp_path_factory.mktemp("inspected")
    world_size, overrides = LAYOUTS["TP2xPP2"]
    settings = ("train.exit_after_steps=4", "checkpoint.interval=2", "precision.dtype=bf16", *overrides)
    train_in_world(world_size, run_config(directory, data, *settings))
    return directory


def full_sizes() -> list[int]:
    """Sizes of the tensors of the whole model, as one process builds it."""
    return sorted(p.numel() for p in tiny_model(tiny_config("llama-tiny")).parameters())


def test_all_tensors_are_listed_without_their_data(tmp_path: Path, run: Path) -> None:
    expected = stored_tensors(run / "checkpoints" / "step_00000004")
    copy = shutil.copytree(run, tmp_path / "copy")
    for file in copy.rglob("*.distcp"):
        file.unlink()
    report = inspect_checkpoint(copy)
    assert report["step"] == 4
    assert report["tensors"].keys() == expected.keys()
    for name, tensor in expected.items():
        listed = report["tensors"][name]
        padding = listed["shape"][0] - tensor.shape[0]
        assert listed["shape"][1:] == list(tensor.shape[1:]) and padding == (tensor.shape[0] == VOCABULARY)
        assert listed["dtype"] == str(tensor.dtype).removeprefix("torch.")
        rows = tensor.shape[0] + padding
        assert listed["bytes"] == rows * tensor[0].numel() * tensor.itemsize
    assert report["bytes"] == sum(tensor["bytes"] for tensor in report["tensors"].values())


def test_shapes_are_those_of_the_whole_model(run: Path) -> None:
    """The library stacks equal layers in one tensor; its layers come apart along the first axis."""
    report = inspect_checkpoint(run)
    sizes = []
    for name, tensor in report["tensors"].items():
        if name.startswith("optimizer."):
            continue
        rows, *rest = tensor["shape"]
        if ".layers." in name:
            sizes += [math.prod(rest)] * rows
        else:
            sizes.append(math.prod([min(rows, VOCABULARY), *rest]))
    assert sorted(sizes) == run_distributed(full_sizes, 1)[0]
    model = ModelConfig(**report["model"])
    assert report["weights"] - model.num_parameters() == 2 * model.hidden_size  # a padded row in each table


def test_shards_cover_each_tensor_and_name_their_files(run: Path) -> None:
    report = inspect_checkpoint(run, step=2)
    files = {file.name for file in (run / "checkpoints" / "step_00000002" / "tensors").glob("*.distcp")}
    for tensor in report["tensors"].values():
        assert {shard["file"] for shard in tensor["shards"]} <= files
        assert sum(math.prod(shard["shape"]) for shard in tensor["shards"]) == math.prod(tensor["shape"])
    assert any(len(tensor["shards"]) > 1 for tensor in report["tensors"].values())


def test_command_prints_a_table_or_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == inspect_checkpoint(run)
    assert cli.main(["inspect", str(run), "--step", "2"]) == 0
    table = capsys.readouterr().out
    assert "(step 2)" in table
    for name, tensor in report["tensors"].items():
        line = next(line for line in table.splitlines() if f" {name} " in line)
        assert tensor["dtype"] in line and f"{tensor['bytes']:,}" in line
        assert " x ".join(map(str, tensor["shape"])) in line
    assert f"{report['bytes']:,}" in table


def test_mistakes_are_one_line(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert cli.main(["inspect", str(run), "--step", "3"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2 and "no checkpoint of step 3; there are 2, 4" in error
