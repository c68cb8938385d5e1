"""Weights pass in memory between layouts, engines and worlds, exactly, in bounded pieces, as often as wanted."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megalm.engine import transfer
from megalm.engine.base import Engine
from megalm.engine.transfer import WeightTransfer, sync_weights
from megalm.errors import UserError
from megalm.launch import free_port
from megalm.model.init import sharded_parameters
from megalm.parallel.bridge import bridge
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.parity.shards import Piece, assemble, pieces_of
from tests.tiny import LR, VOCABULARY, tiny_config, tiny_engine, tiny_microbatches

TP2 = "parallel.tensor_model_parallel_size=2"
TP4 = "parallel.tensor_model_parallel_size=4"
PP2 = "parallel.pipeline_model_parallel_size=2"
PP4 = "parallel.pipeline_model_parallel_size=4"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
EP4 = "parallel.expert_model_parallel_size=4"
ZERO1 = "parallel.zero_stage=1"
DEEPSPEED = "engine=deepspeed"
ZERO2 = "parallel.zero_stage=2"
BF16 = "precision.dtype=bf16"
FP32 = "precision.dtype=fp32"
LORA = ("lora.rank=4", "lora.alpha=100", "run.load=unused")
TIED = "model.tie_embeddings=true"
OTHER_SEED = "run.seed=77"
ACTORS, READERS = 2, 4
"""Processes of the worlds that pass each other weights."""


def build(preset: str, *overrides: str, train: bool = True) -> Engine:
    config = tiny_config(preset, "model.num_layers=4", FP32, *overrides)
    if train:
        return tiny_engine(config)
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout

    return build_engine(config, create_layout(config.parallel), train=False)


def weights(engine: Engine) -> list[Piece]:
    engine.gather_weights()
    return [piece for chunk in engine.chunks for piece in pieces_of(sharded_parameters(chunk, engine.layout))]


def loss_of(engine: Engine) -> float:
    sums, counts = engine.evaluate(tiny_microbatches(7, engine.layout), NextTokenLoss())
    return float(sums[0] / counts[0])


def step(engine: Engine, number: int = 0) -> Any:
    return engine.step(tiny_microbatches(number, engine.layout), NextTokenLoss(), LR)


def passed_around(preset: str, layouts: list[tuple[str, ...]]) -> tuple[list[list[Piece]], list[float]]:
    """Train one engine, hand its weights from layout to layout, and back into a fresh one of the first layout."""
    first = build(preset, *layouts[0])
    step(first)
    found, losses, before = [weights(first)], [loss_of(first)], first
    for layout in [*layouts[1:], layouts[0]]:
        target = build(preset, *layout, OTHER_SEED)
        sync_weights(before, target)
        found.append(weights(target))
        losses.append(loss_of(target))
        before = target
    return found, losses


def real_rows(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the padding of the vocabulary, which differs between layouts and must be zero."""
    cut = {}
    for name, tensor in tensors.items():
        if "word_embeddings" in name or name.startswith("output_layer"):
            assert not tensor[VOCABULARY:].any()
            tensor = tensor[:VOCABULARY]
        cut[name] = tensor
    return cut


@pytest.mark.parametrize(
    ("preset", "layouts"),
    [
        ("llama-tiny", [(TP2,), (), (PP2, TP2)]),
        ("gpt2-tiny", [(TP4,), (PP2, VP2), (ZERO1,), (PP4,)]),
        ("llama-tiny", [(PP2, VP2, TIED, ZERO1), (TP2, TIED), (TP2, PP2, TIED)]),
        ("mixtral-tiny", [(EP4,), (TP2,), (EP2, PP2)]),
        ("llama-tiny", [(DEEPSPEED,), (TP2, PP2), (DEEPSPEED, ZERO2), (DEEPSPEED, TP2, ZERO1)]),
        ("bert-tiny", [(TP2,), (PP2,)]),
    ],
    ids=["TP, DP, TPxPP", "TP4, interleaved, ZeRO-1, PP4", "tied", "experts", "DeepSpeed", "BERT"],
)
def test_weights_pass_from_layout_to_layout_and_back_bit_for_bit(
    preset: str, layouts: list[tuple[str, ...]]
) -> None:
    ranks = run_distributed(passed_around, 4, preset, layouts)
    first, *others = (
        real_rows(assemble(rank[0][place] for rank in ranks)) for place in range(len(layouts) + 1)
    )
    assert len(first) > 20
    for other in others:
        assert other.keys() == first.keys()
        for name, tensor in first.items():
            assert torch.equal(other[name], tensor), name
    for _, losses in ranks:
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-6)


def passed_between_formats() -> tuple[list[list[Piece]], float]:
    wide = build("llama-tiny", TP2)
    narrow = build("llama-tiny", BF16, OTHER_SEED, train=False)
    sync_weights(wide, narrow)
    back = build("llama-tiny", PP2, OTHER_SEED)
    sync_weights(narrow, back)
    return [weights(engine) for engine in (wide, narrow, back)], loss_of(narrow)


def test_formats_are_rounded_to_the_targets_and_no_further() -> None:
    ranks = run_distributed(passed_between_formats, 4)
    wide, narrow, back = (real_rows(assemble(rank[0][place] for rank in ranks)) for place in range(3))
    for name, tensor in wide.items():
        assert narrow[name].dtype == torch.bfloat16 and back[name].dtype == torch.float32
        assert torch.equal(narrow[name], tensor.bfloat16()) and torch.equal(
            back[name], tensor.bfloat16().float()
        )


def draw_adapters(engine: Engine) -> None:
    """As B is zero at first, random numbers in its place, the same on all that hold the same."""
    for chunk in engine.chunks:
        for name, parameter in chunk.named_parameters():
            if name.endswith(".lora.b"):
                values = torch.arange(parameter.numel(), dtype=torch.float32)
                parameter.data.copy_((values.view_as(parameter) * 0.37).sin() * 0.01)


def adapters_merged() -> tuple[list[Piece], list[Piece], list[float]]:
    actor = build("llama-tiny", TP2, *LORA)
    draw_adapters(actor)
    plain = build("llama-tiny", PP2, OTHER_SEED, train=False)
    before = weights(actor)
    sync_weights(actor, plain)
    losses = [loss_of(actor), loss_of(plain)]
    step(actor)
    transferred = WeightTransfer(actor, plain)
    transferred.run()
    losses += [loss_of(actor), loss_of(plain)]
    base = build("llama-tiny", TP2, OTHER_SEED)
    sync_weights(base, actor)  # what has no adapters leaves them as they are
    after = weights(actor)
    adapters = [[piece.data for piece in pieces if ".lora." in piece.name] for pieces in (before, after)]
    assert len(adapters[0]) == len(adapters[1]) > 0
    return weights(actor), weights(base), losses


def test_adapters_are_added_for_a_target_without_and_kept_where_the_source_has_none() -> None:
    ranks = run_distributed(adapters_merged, 4)
    for _, _, (adapted, merged, adapted_later, merged_later) in ranks:
        assert merged == pytest.approx(adapted, rel=1e-5) and merged_later == pytest.approx(
            adapted_later, rel=1e-5
        )
        assert abs(adapted_later - adapted) > 1e-4
    actor, base = (assemble(rank[place] for rank in ranks) for place in range(2))
    assert all(torch.equal(actor[name], tensor) for name, tensor in base.items())
    assert any(".lora." in name for name in actor)


def repeated() -> tuple[list[bool], int, int]:
    """A plan that is run after every step, with buckets so small that matrices are cut."""
    transfer.BUCKET_BYTES = 8 << 10
    try:
        source, target = build("llama-tiny", TP2), build("llama-tiny", PP2, OTHER_SEED, train=False)
        way = WeightTransfer(source, target)
        equal = []
        for number in range(3):
            step(source, number)
            way.run()
            equal.append(abs(loss_of(source) - loss_of(target)) < 1e-5)
        return equal, max(map(max, way.traffic)), len(way.traffic)
    finally:
        transfer.BUCKET_BYTES = 64 << 20


def test_a_plan_is_reused_and_keeps_to_its_bucket() -> None:
    for equal, most, rounds in run_distributed(repeated, 4):
        assert equal == [True] * 3
        assert most <= 8 << 10 and rounds > 10


def trained_target() -> list[tuple[float, float, float]]:
    """Of targets that train on: the passed loss, the loss received, and how far a step moves any weight."""
    found = []
    for overrides in ((BF16,), (ZERO1,), (DEEPSPEED,), (DEEPSPEED, BF16, ZERO2)):
        source, target = build("llama-tiny", TP2), build("llama-tiny", *overrides, OTHER_SEED)
        sync_weights(source, target)
        loss, before = loss_of(target), weights(target)
        step(target)
        moved = max(
            float((new.data - old.data).abs().max()) for new, old in zip(weights(target), before, strict=True)
        )
        found.append((loss_of(source), loss, moved))
    return found


def test_training_goes_on_from_weights_that_were_passed() -> None:
    for source, received, moved in run_distributed(trained_target, 2)[0]:
        assert received == pytest.approx(source, rel=1e-3)
        # Adam's first step is about the learning rate; the weights of another seed are some 0.1 away
        assert 0 < moved < 10 * LR < 0.05


def mismatch() -> list[str]:
    messages = []
    for overrides in (
        ("model.num_layers=6",),
        ("model.ffn_hidden_size=96",),
        ("parallel.zero_stage=3", DEEPSPEED),
    ):
        source = build("llama-tiny", TP2)
        target = build("llama-tiny", *overrides)
        with pytest.raises(UserError) as caught:
            WeightTransfer(source, target)
        messages.append(str(caught.value))
    return messages


def test_other_models_are_refused_with_the_weights_name() -> None:
    layers, width, parted = run_distributed(mismatch, 2)[0]
    assert "decoder.layers.4." in layers and "no place in the one that is read" in layers
    assert "mlp.linear_fc" in width and "both must be of one model" in width
    assert "parted by ZeRO-3" in parted


def one_side(side: str, port: int) -> list[float]:
    """A process of one of two worlds: the actor's sends its weights each step, the reader's takes them."""
    is_actor = side == "actor"
    engine = build("llama-tiny", TP2) if is_actor else build("llama-tiny", TP2, PP2, OTHER_SEED)
    rank = dist.get_rank()
    store = dist.TCPStore("127.0.0.1", port, is_master=is_actor and rank == 0)
    place = rank if is_actor else ACTORS + rank
    group = bridge(store, place, ACTORS + READERS, timedelta(seconds=60), torch.device("cpu"))
    way = WeightTransfer(engine if is_actor else None, None if is_actor else engine, group)
    losses = []
    for number in range(2):
        if is_actor:
            step(engine, number)
        way.run()
        losses.append(loss_of(engine))
    group.barrier().wait()
    return losses


def test_worlds_of_their_own_pass_weights_over_a_bridge() -> None:
    for size in (ACTORS, READERS):  # both are there before either waits for the other
        run_distributed(dist.get_rank, size)
    port = free_port()
    with ThreadPoolExecutor(2) as pool:
        actors = pool.submit(run_distributed, one_side, ACTORS, "actor", port, timeout=120.0)
        readers = pool.submit(run_distributed, one_side, READERS, "reader", port, timeout=120.0)
        losses = [*actors.result(), *readers.result()]
    assert abs(losses[0][0] - losses[0][1]) > 1e-4
    for found in losses:
        assert found == pytest.approx(losses[0], rel=1e-6)
