"""A run goes from engine to engine and between the stages of ZeRO with the same numbers."""

from pathlib import Path

import pytest

from megalm.checkpoint import find_checkpoint
from megalm.testing import run_distributed
from tests.checkpoint import test_reshard as moves
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.train.runs import ALL_LAYOUTS, run_config

saved = moves.saved  # the fixture

CPU = "offload.optimizer=cpu"
PAIRS = [
    ("one process", "DeepSpeed, ZeRO-3"),
    ("TP2", "DeepSpeed, ZeRO-1"),
    ("PP2", "DeepSpeed, ZeRO-2"),
    ("DP2+ZeRO-1", "DeepSpeed, DP2"),
    ("DP2+ZeRO-1", "DeepSpeed, ZeRO-3 x TP2"),
    ("TP2xPP2", "DeepSpeed, one process"),
    ("DeepSpeed, DP2", "TP2"),
    ("DeepSpeed, ZeRO-1", "PP2"),
    ("DeepSpeed, ZeRO-2", "TP2xPP2"),
    ("DeepSpeed, ZeRO-3", "DP2+ZeRO-1"),
    ("DeepSpeed, ZeRO-3 x TP2", "one process"),
    ("DeepSpeed, ZeRO-1", "DeepSpeed, ZeRO-3"),
    ("DeepSpeed, ZeRO-3", "DeepSpeed, ZeRO-2 x TP2"),
]


@pytest.mark.parametrize(("origin", "target"), PAIRS)
def test_other_engine_or_stage_continues_with_the_same_numbers(
    tmp_path: Path, data: Path, saved, origin: str, target: str
) -> None:
    """Every tensor bit for bit, Adam's count, and the next losses within 1e-6."""
    source, tensors, losses, norms = saved(origin, moves.padded(origin))
    found = moves.continue_in(target, tmp_path, data, source, moves.padded(target))
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert found.losses == pytest.approx(losses, rel=1e-6)
    assert found.norms == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        ("TP2", "DeepSpeed, ZeRO-1"),
        ("DP2+ZeRO-1", "DeepSpeed, ZeRO-2"),
        ("PP2", "DeepSpeed, ZeRO-3"),
        ("DeepSpeed, ZeRO-3", "DeepSpeed, DP2"),
        ("DeepSpeed, DP2", "PP2"),
    ],
)
def test_bf16_run_changes_engine_with_its_masters(
    tmp_path: Path, data: Path, saved, origin: str, target: str
) -> None:
    bf16 = "precision.dtype=bf16"
    source, tensors, losses, _ = saved(origin, bf16)
    found = moves.continue_in(target, tmp_path, data, source, bf16)
    assert any(name.startswith("optimizer.master.") for name in tensors)
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert found.losses == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("target", ["DeepSpeed, ZeRO-1", "DeepSpeed, ZeRO-3"])
def test_bf16_run_goes_on_in_fp32_from_its_masters(tmp_path: Path, data: Path, saved, target: str) -> None:
    source, tensors, losses, _ = saved("TP2", "precision.dtype=bf16")
    found = moves.continue_in(target, tmp_path, data, source, "precision.dtype=fp32")
    written = stored_tensors(find_checkpoint(tmp_path))
    for name, tensor in tensors.items():
        if name.startswith("optimizer.master."):
            weight = written.pop(name.removeprefix("optimizer.master."))
            assert weight.equal(tensor), name
    assert all(name.startswith("optimizer.") for name in written)
    assert found.losses == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("target", ["DeepSpeed, ZeRO-2", "DeepSpeed, ZeRO-3"])
def test_weights_alone_become_what_adam_updates(tmp_path: Path, data: Path, saved, target: str) -> None:
    """In fp32, where DeepSpeed keeps a second copy of the weights that no checkpoint holds: an update without gradient
    from a stale copy would bring the initial weights back."""
    source, tensors, _, _ = saved("TP2", moves.padded("TP2"))
    world_size, overrides = ALL_LAYOUTS[target]
    config = run_config(tmp_path, data, *moves.MODEL, *overrides, "optimizer.weight_decay=0")
    run_distributed(moves.load_weights_step_and_save, world_size, config, source)
    written = stored_tensors(find_checkpoint(tmp_path))
    for name, tensor in tensors.items():
        if not name.startswith("optimizer."):
            assert written[name].equal(tensor), name


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("target", ["DeepSpeed, ZeRO-2", "DeepSpeed, ZeRO-3"])
def test_offloaded_state_is_saved_and_loaded_too(tmp_path: Path, data: Path, saved, target: str) -> None:
    source, tensors, losses, norms = saved("TP2", moves.padded("TP2"))
    found = moves.continue_in(target, tmp_path, data, source, CPU)
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert found.losses == pytest.approx(losses, rel=1e-6)
    assert found.norms == pytest.approx(norms, rel=1e-5)
