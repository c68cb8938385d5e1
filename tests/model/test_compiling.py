"""A compiled model trains like the uncompiled one, keeps its parameters' names and is traced without a break."""

import pytest
import torch
import torch._dynamo

from megalm.kernels import cxx_compiler
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

pytestmark = [
    pytest.mark.skipif(not cxx_compiler().usable, reason="no C++ compiler"),
    pytest.mark.slow,
]

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
FULL = "train.recompute.granularity=full"
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")


def train(preset: str, *overrides: str, steps: int = 10) -> tuple[list[tuple[float, float]], list[str], int]:
    """(losses and gradient norms, names in a checkpoint, breaks of the compiler's graph)."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine = tiny_engine(tiny_config(preset, *overrides))
    metrics = []
    for step in range(steps):
        result = engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
        metrics.append((result.loss, result.grad_norm))
    return metrics, sorted(engine.state()), sum(torch._dynamo.utils.counters["graph_break"].values())


def check(how: str, bound: float, breaks: int | None, preset: str, *overrides: str) -> None:
    expected, names, _ = train(preset, *overrides)
    found, compiled_names, counted = train(preset, *overrides, f"train.compile={how}")
    assert compiled_names == names
    assert torch.tensor(found) == pytest.approx(torch.tensor(expected), rel=bound)
    assert breaks is None or counted == breaks


@pytest.mark.parametrize(
    ("preset", "dtype", "bound"),
    [("llama-tiny", "fp64", 1e-10), ("gpt2-tiny", "fp64", 1e-10), ("gpt2-tiny", "bf16", 5e-3)],
    ids=["llama-tiny-fp64", "gpt2-tiny-fp64", "gpt2-tiny-bf16"],
)
@in_world(1)
def test_ten_steps_of_compiled_layers_equal_uncompiled_ones(preset: str, dtype: str, bound: float) -> None:
    check("blocks", bound, 0, preset, f"precision.dtype={dtype}")


@pytest.mark.parametrize("layout", [(TP2,), (TP2, SP)], ids=["TP2", "TP2+SP"])
@in_world(2)
def test_collectives_of_tensor_parallel_layers_are_part_of_the_graph(layout: tuple[str, ...]) -> None:
    check("blocks", 1e-10, 0, "llama-tiny", *layout)


@in_world(1)
def test_many_layers_share_their_graphs() -> None:
    _, _, breaks = train("llama-tiny", "model.num_layers=12", "train.compile=blocks", steps=1)
    assert breaks == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@in_world(1)
def test_dropout_draws_the_same_masks_compiled_also_where_layers_are_recomputed(recompute: str) -> None:
    check("blocks", 1e-10, None, "gpt2-tiny", *DROPOUT, f"train.recompute.granularity={recompute}")


@in_world(2)
def test_dropout_under_tensor_and_sequence_parallelism_draws_the_same_masks_compiled() -> None:
    check("blocks", 1e-10, None, "gpt2-tiny", *DROPOUT, TP2, SP)


@in_world(1)
def test_recomputed_layers_are_compiled_without_a_break() -> None:
    check("blocks", 1e-10, 0, "llama-tiny", FULL)


@in_world(1)
def test_ten_steps_of_a_compiled_model_equal_an_uncompiled_one() -> None:
    check("model", 1e-10, None, "llama-tiny")


@in_world(2)
def test_compiled_stages_of_a_pipeline_equal_uncompiled_ones() -> None:
    check("model", 1e-10, None, "gpt2-tiny", "parallel.pipeline_model_parallel_size=2")
