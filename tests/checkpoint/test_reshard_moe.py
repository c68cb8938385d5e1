"""A run with experts goes on under another layout with the same numbers, however its experts were shared out."""

from pathlib import Path
from typing import Any

import pytest

from megalm.checkpoint import CheckpointWriter, find_checkpoint
from megalm.testing import run_distributed
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors

STEPS = 2
TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
ZERO1 = "parallel.zero_stage=1"
LAYOUTS = {
    "one process": (1, ()),
    "TP2+SP": (2, (TP2, SP)),
    "EP2": (2, (EP2,)),
    "EP2xDP2+ZeRO-1": (4, (EP2, ZERO1)),
    "EP2xPP2": (4, (EP2, PP2)),
    "EP2xTP2+SP+ZeRO-1": (4, (EP2, TP2, SP, ZERO1)),
}
MODELS = {
    "all layers": ("model.moe.shared_expert_ffn_hidden_size=48",),
    "every second layer": ("model.moe.layer_frequency=2", "model.moe.moe_ffn_hidden_size=40"),
}


def go_on(
    overrides: tuple[str, ...], source: Path | None, directory: Path
) -> tuple[float, float, dict[str, float]]:
    """Load `source`, or take two steps, save to `directory`, and take another step; its figures."""
    from megalm.checkpoint import load_training_state
    from megalm.train.pretrain import NextTokenLoss
    from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches

    config = tiny_config("mixtral-tiny", "model.num_layers=4", "precision.dtype=fp32", *overrides)
    engine = tiny_engine(config)
    if source is None:
        for step in range(STEPS):
            engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
    else:
        load_training_state(engine, source)
    writer = CheckpointWriter(directory, config, engine)
    writer.save(STEPS, {"step": STEPS, "counters": engine.counters})
    writer.finish()
    metrics = engine.step(tiny_microbatches(STEPS, engine.layout), NextTokenLoss(), LR)
    return metrics.loss, metrics.grad_norm, metrics.more


def on_all_ranks(layout: str, model: str, source: Path | None, directory: Path) -> Any:
    world_size, overrides = LAYOUTS[layout]
    ranks = run_distributed(go_on, world_size, (*MODELS[model], *overrides), source, directory)
    assert all(rank == ranks[0] for rank in ranks)
    return ranks[0]


@pytest.mark.parametrize(
    ("model", "way"),
    [
        ("all layers", ("EP2", "one process", "TP2+SP", "EP2xDP2+ZeRO-1", "EP2xPP2")),
        ("every second layer", ("EP2xDP2+ZeRO-1", "EP2xTP2+SP+ZeRO-1", "one process", "EP2xPP2", "EP2")),
    ],
)
def test_experts_move_from_layout_to_layout(tmp_path: Path, model: str, way: tuple[str, ...]) -> None:
    """Every tensor bit for bit, and the next step's loss, gradient norm and routing."""
    loss, norm, more = on_all_ranks(way[0], model, None, tmp_path / "0")
    source = find_checkpoint(tmp_path / "0")
    tensors = stored_tensors(source)
    experts = [name for name in tensors if ".mlp.experts." in name]
    assert len(experts) == 3 * 2 * (1 if model == "all layers" else 2)
    for number, layout in enumerate(way[1:], start=1):
        found = on_all_ranks(layout, model, source, tmp_path / str(number))
        source = find_checkpoint(tmp_path / str(number))
        assert_equal_tensors(stored_tensors(source), tensors)
        assert found[:2] == pytest.approx((loss, norm), rel=1e-6)
        assert found[2] == pytest.approx(more, rel=1e-5)
