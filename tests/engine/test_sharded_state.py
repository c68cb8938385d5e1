"""What ranks give to a checkpoint: each tensor once, on the CPU, the bytes spread evenly over data-parallel ranks."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megalm.engine.megatron import MegatronEngine
from megalm.errors import UserError
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
ZERO1 = "parallel.zero_stage=1"


def gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def bytes_by_place(engine: MegatronEngine) -> dict[str, int]:
    return {place: shard.data.nbytes for place, shard in engine.state().items()}


def stored_formats(engine: MegatronEngine) -> dict[str, torch.dtype]:
    """Names and formats of what all ranks together would store."""
    mine = {shard.key: shard.data.dtype for shard in engine.state().values()}
    return {key: dtype for part in gathered(mine) for key, dtype in part.items()}


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ((), "fp64"),
        ((ZERO1,), "bf16"),
        ((ZERO1, TP2), "fp32"),
        ((ZERO1, PP2), "bf16"),
        ((ZERO1, PP2, VP2), "bf16"),
    ],
    ids=["DP4", "DP4+ZeRO-1", "TP2xDP2+ZeRO-1", "PP2xDP2+ZeRO-1", "PP2xVP2xDP2+ZeRO-1"],
)
@in_world(4)
def test_data_parallel_ranks_write_alike(layout: tuple[str, ...], dtype: str) -> None:
    """Apart by the largest parameter at most; each place on one of them, with all its parts. A layer here has 12 tensors."""
    engine = tiny_engine(tiny_config("gpt2-tiny", "model.num_layers=8", f"precision.dtype={dtype}", *layout))
    by_rank: list[dict[str, int]] = [{} for _ in range(engine.layout.dp_size)]
    dist.all_gather_object(by_rank, bytes_by_place(engine), group=engine.layout.groups.dp_cp)
    places = [place for part in by_rank for place in part]
    assert len(places) == len(set(places))
    sizes = [sum(part.values()) for part in by_rank]
    whole_parameter: dict[str, int] = {}
    for part in by_rank:
        names = {place.removeprefix("model.") for place in part if place.startswith("model.")}
        for place, size in part.items():
            name = next(n for n in names if place.endswith(f".{n}"))
            whole_parameter[name] = whole_parameter.get(name, 0) + size
    assert max(sizes) - min(sizes) <= max(whole_parameter.values()), sizes
    kinds = 4 if dtype == "bf16" else 3
    assert len(places) == kinds * len(whole_parameter)


@pytest.mark.parametrize(
    "layout",
    [(), (ZERO1,), (TP2,), (PP2,), (PP2, VP2, "model.num_layers=4")],
    ids=["DP4", "ZeRO-1", "TP2", "PP2", "PP2xVP2"],
)
@in_world(4)
def test_no_copy_is_made_that_nobody_writes(layout: tuple[str, ...]) -> None:
    """Norms that tensor-parallel ranks share and tied embeddings are taken from the rank that writes them."""
    engine = tiny_engine(tiny_config("gpt2-tiny", "precision.dtype=bf16", *layout))
    state = engine.state()
    assert state and all(set(shard.replica_id) == {0} for shard in state.values())
    full = {
        key: numel
        for part in gathered({shard.key: math.prod(shard.global_shape) for shard in state.values()})
        for key, numel in part.items()
    }
    assert sum(gathered(sum(shard.data.numel() for shard in state.values()))) == sum(full.values())


@pytest.mark.parametrize("zero", [0, 1])
@in_world(2)
def test_state_is_a_copy_on_the_cpu(zero: int) -> None:
    engine = tiny_engine(tiny_config("llama-tiny", "precision.dtype=bf16", f"parallel.zero_stage={zero}"))
    engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR)
    state = engine.state()
    before = {place: shard.data.clone() for place, shard in state.items()}
    assert all(tensor.device.type == "cpu" for tensor in before.values())
    engine.step(tiny_microbatches(1, engine.layout), NextTokenLoss(), LR)
    assert all(torch.equal(state[place].data, tensor) for place, tensor in before.items())
    later = {place: shard.data for place, shard in engine.state().items()}
    moments = [place for place in before if place.startswith("optimizer.exp_avg")]
    assert moments and not any(torch.equal(later[place], before[place]) for place in moments)


@in_world(1)
def test_what_is_to_be_read_takes_no_memory_until_it_is_read() -> None:
    engine = tiny_engine(tiny_config("llama-tiny", "precision.dtype=bf16"))
    wanted = engine.empty_state(stored_formats(engine), with_optimizer=True)
    assert wanted.keys() == engine.state().keys()
    assert all(shard.data.device.type == "meta" for shard in wanted.values())


@in_world(1)
def test_a_checkpoint_that_lacks_moments_is_no_training_state() -> None:
    engine = tiny_engine(tiny_config("llama-tiny", "precision.dtype=bf16"))
    stored = stored_formats(engine)
    del stored["optimizer.exp_avg.decoder.final_layernorm.weight"]
    assert engine.empty_state(stored, with_optimizer=False)
    with pytest.raises(UserError, match="no tensor optimizer.exp_avg.decoder.final_layernorm.weight"):
        engine.empty_state(stored, with_optimizer=True)


@pytest.mark.parametrize("zero", [0, 1])
@in_world(2)
def test_weights_become_masters_unless_masters_come_with_them(zero: int) -> None:
    engine = tiny_engine(tiny_config("llama-tiny", "precision.dtype=bf16", f"parallel.zero_stage={zero}"))
    name = "decoder.final_layernorm.weight"
    parameter = engine.model.get_parameter(name)

    def master() -> Tensor:
        found = [engine.optimizer_state.gather(parameter, "master", owner) for owner in range(2)]
        return found[dist.get_rank()]

    weight = torch.linspace(0.1, 2.0, parameter.numel())
    engine.load({f"model.{name}": weight})
    assert torch.equal(master(), weight) and torch.equal(parameter, weight.bfloat16())
    engine.load({f"optimizer.master.{name}": weight + 1e-3, f"model.{name}": weight.bfloat16()})
    assert torch.equal(master(), weight + 1e-3) and torch.equal(parameter, weight.bfloat16())
