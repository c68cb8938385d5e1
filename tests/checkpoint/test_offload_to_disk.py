"""ZeRO-3 with optimizer and weights on a disk trains, saves and loads the numbers of ZeRO-3 in memory."""

from pathlib import Path

import pytest
import torch.distributed as dist

from megalm.checkpoint import CheckpointWriter, find_checkpoint, load_training_state
from megalm.config import Config
from megalm.engine.base import Engine
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches

# DeepSpeed leaves tensors below a MiB where they are: a rank's part of these matrices is more, in bf16 too
LARGE = (
    "model.num_layers=1",
    "model.hidden_size=512",
    "model.ffn_hidden_size=4096",
    "model.num_query_groups=4",
)
LARGE_MATRIX_BYTES = 2 * 512 * 4096
ZERO3 = ("engine=deepspeed", "parallel.zero_stage=3", "checkpoint.async_save=false")
PLACES = {
    "optimizer, fp32": ("precision.dtype=fp32", "offload.optimizer=nvme"),
    "optimizer and weights, bf16": (
        "precision.dtype=bf16",
        "offload.optimizer=nvme",
        "offload.parameters=nvme",
    ),
}


def config_of(*overrides: str) -> Config:
    return tiny_config("llama-tiny", *LARGE, *ZERO3, *overrides)


def problem_of_disk() -> str | None:
    from megalm.engine.deepspeed_setup import import_deepspeed, problem_of_operator

    config = config_of("precision.dtype=fp32")
    layout = create_layout(config.parallel)
    import_deepspeed(layout.device)
    return problem_of_operator("AsyncIOBuilder", layout)


@pytest.fixture(scope="module")
def asynchronous_io(operators: None) -> None:
    (problem,) = run_distributed(problem_of_disk, 1)
    if problem:
        pytest.skip(f"DeepSpeed's asynchronous I/O cannot be compiled here: {problem}")


def losses(engine: Engine, first: int, last: int) -> list[float]:
    return [
        engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR).loss
        for step in range(first, last)
    ]


def save(engine: Engine, config: Config, directory: Path) -> Path:
    CheckpointWriter(directory, config, engine).save(2, {"step": 2, "counters": engine.counters})
    return find_checkpoint(directory)


def train_through_the_disk(directory: Path, place: tuple[str, ...]) -> None:
    """Two steps, a checkpoint, two more, beside the same in memory; then on from the checkpoint in another engine."""
    dtype, *_ = place
    in_memory = config_of(dtype, "offload.optimizer=cpu")  # so that the same code updates
    on_disk = config_of(*place, f"offload.nvme_path={directory / 'disk'}")
    resident, moved = tiny_engine(in_memory), tiny_engine(on_disk)
    assert losses(moved, 0, 2) == pytest.approx(losses(resident, 0, 2), rel=1e-6)
    files = [path for path in (directory / "disk").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) > 4 * LARGE_MATRIX_BYTES, "nothing rests on the disk"
    expected = save(resident, in_memory, directory / "resident")
    found = save(moved, on_disk, directory / "moved")
    if dist.get_rank() == 0:
        assert_equal_tensors(stored_tensors(found), stored_tensors(expected))
    rest = losses(moved, 2, 4)
    assert rest == pytest.approx(losses(resident, 2, 4), rel=1e-6)
    another = tiny_engine(config_of(*place, f"offload.nvme_path={directory / 'another'}"))
    load_training_state(another, found)
    again = save(another, on_disk, directory / "again")
    if dist.get_rank() == 0:
        assert_equal_tensors(stored_tensors(again), stored_tensors(found))
    assert losses(another, 2, 4) == pytest.approx(rest, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("asynchronous_io")
def test_state_on_a_disk_is_trained_saved_and_loaded_as_in_memory(tmp_path: Path, place: str) -> None:
    run_distributed(train_through_the_disk, 2, tmp_path, PLACES[place])
