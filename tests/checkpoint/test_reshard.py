"""A run goes on under another layout or precision with the same numbers, however its tensors were spread and padded."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from megalm.checkpoint import find_checkpoint
from megalm.config import Config
from megalm.testing import run_distributed
from tests.checkpoint.stored import assert_equal_tensors, stored_tensors
from tests.train.runs import (
    ALL_LAYOUTS,
    GLOBAL_BATCH,
    LAYOUTS,
    PP2,
    SEQUENCE,
    TP2,
    ZERO1,
    run_config,
    step_lines,
    train_in_world,
)

STEPS, MORE_STEPS = 3, 2
# No number of ranks divides these; each layout pads the vocabulary of 509 otherwise: 509, 510, 512, 640, 512.
MODEL = ("model.hidden_size=120", "model.ffn_hidden_size=172", "model.tie_embeddings=true")
PADDING = {
    "one process": 1,
    "TP2": 1,
    "PP2": 128,
    "DP2+ZeRO-1": 640,
    "TP2xPP2": 256,
}
OTHER_AXES = {
    "PP2xVP2": (2, (PP2, "parallel.virtual_pipeline_model_parallel_size=2")),
    "PP2 uneven": (2, (PP2, "parallel.pipeline_layers=[3, 1]")),
    "CP2": (2, ("parallel.context_parallel_size=2",)),
    "CP2xTP2+ZeRO-1": (4, ("parallel.context_parallel_size=2", TP2, ZERO1)),
}
PAIRS = [(saved, loaded) for saved in LAYOUTS for loaded in LAYOUTS if saved != loaded]


@dataclass
class Continued:
    """What a rank found after it loaded a checkpoint."""

    samples: dict[int, np.ndarray]
    """Tokens of this rank's samples of the next batch, by number."""
    updates: int
    losses: list[float]
    norms: list[float]


Work = Callable[[Config, Path], Continued]


def load_and_continue(config: Config, source: Path) -> Continued:
    """Load `source` into a new engine, save what it now holds to the run directory, and take two more steps."""
    from megalm.checkpoint import CheckpointWriter, load_training_state
    from megalm.dataset import Cursor
    from megalm.engine.build import build_engine
    from megalm.engine.schedule import learning_rate
    from megalm.parallel.layout import create_layout
    from megalm.train.data import TrainingData, open_stream
    from megalm.train.pretrain import NextTokenLoss

    engine = build_engine(config, create_layout(config.parallel, config.run.seed))
    state = load_training_state(engine, source)
    writer = CheckpointWriter(Path(config.run.dir), config, engine)
    writer.save(state["step"], state)
    writer.finish()
    updates = engine.counters["updates"]
    assert updates == state["counters"]["updates"]
    if config.precision.dtype == "fp16":
        assert engine.counters == state["counters"] and "loss_scale" in state["counters"]

    data = TrainingData(config, engine.layout, open_stream(config, config.data.train, None))
    data.move_to(Cursor.from_json(state["cursor"]))
    numbers = Cursor.from_json(state["cursor"]).take(GLOBAL_BATCH)[data.local]
    batches = [data.next() for _ in range(MORE_STEPS)]
    tokens_BS = torch.cat([microbatch.tokens_BS for microbatch in batches[0]]).numpy()
    results = [
        engine.step(batch, NextTokenLoss(), learning_rate(config.optimizer, step, config.train.steps))
        for step, batch in enumerate(batches, start=state["step"] + 1)
    ]
    return Continued(
        samples=dict(zip(numbers.tolist(), tokens_BS, strict=True)),
        updates=updates,
        losses=[result.loss for result in results],
        norms=[result.grad_norm for result in results],
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, data: Path):
    """`saved(layout, *settings)`: a checkpoint of step 3, its tensors, and the losses and norms of the next steps."""

    @functools.cache
    def save(layout: str, *settings: str) -> tuple[Path, dict[str, Tensor], list[float], list[float]]:
        world_size, overrides = (ALL_LAYOUTS | OTHER_AXES)[layout]
        directory = tmp_path_factory.mktemp("saved")
        config = run_config(directory, data, *MODEL, *overrides, *settings, f"checkpoint.interval={STEPS}")
        config.train.exit_after_steps = STEPS + MORE_STEPS
        train_in_world(world_size, config)
        checkpoint = find_checkpoint(directory, STEPS)
        lines = step_lines(directory)[STEPS:]
        norms = [line["grad_norm"] for line in lines]
        return checkpoint, stored_tensors(checkpoint), [line["loss"] for line in lines], norms

    return save


def continue_in(
    layout: str, directory: Path, data: Path, source: Path, *settings: str, work: Work = load_and_continue
) -> Continued:
    """`load_and_continue` on all ranks of a layout; what the ranks found, together."""
    world_size, overrides = (ALL_LAYOUTS | OTHER_AXES)[layout]
    config = run_config(directory, data, *MODEL, *overrides, *settings)
    ranks = run_distributed(work, world_size, config, source)
    assert all((r.losses, r.norms, r.updates) == (ranks[0].losses, ranks[0].norms, STEPS) for r in ranks)
    samples = {number: tokens for rank in ranks for number, tokens in rank.samples.items()}
    return Continued(samples, ranks[0].updates, ranks[0].losses, ranks[0].norms)


def continue_with_buckets(config: Config, source: Path) -> Continued:
    """`load_and_continue` with gradients and optimizer in several buckets, each padded."""
    from megalm.engine.megatron import MegatronEngine

    buckets, step = [], MegatronEngine.step

    def count_and_step(engine: MegatronEngine, *arguments: Any) -> Any:
        buckets.append([len(buffer.buckets) for ddp in engine.ddp_chunks for buffer in ddp.buffers])
        return step(engine, *arguments)

    with mock.patch.object(MegatronEngine, "step", count_and_step):
        found = load_and_continue(config, source)
    assert buckets and all(sum(numbers) >= 4 for numbers in buckets), buckets
    return found


def continue_in_portions(limit: int, config: Config, source: Path) -> Continued:
    """`load_and_continue` with little memory to read into: no portion is larger than `limit` and one tensor."""
    from megalm.checkpoint import read
    from megalm.engine.megatron import MegatronEngine

    sizes, load = [], MegatronEngine.load

    def measure_and_load(engine: MegatronEngine, portion: dict[str, Tensor]) -> None:
        sizes.append([tensor.nbytes for tensor in portion.values()])
        assert all(tensor.device.type == "cpu" for tensor in portion.values())
        load(engine, portion)

    with (
        mock.patch.object(read, "PORTION_BYTES", limit),
        mock.patch.object(MegatronEngine, "load", measure_and_load),
    ):
        found = load_and_continue(config, source)
    assert len(sizes) > 5 and all(sum(portion[:-1]) < limit for portion in sizes), sizes
    of_ranks: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(of_ranks, sizes)
    assert any([] in portions for portions in of_ranks) == (config.parallel.pipeline_model_parallel_size > 1)
    return found


def load_weights_and_save(config: Config, source: Path) -> None:
    """Load only the weights and save what the engine then holds."""
    from megalm.checkpoint import CheckpointWriter, load_weights
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout

    engine = build_engine(config, create_layout(config.parallel))
    load_weights(engine, source)
    writer = CheckpointWriter(Path(config.run.dir), config, engine)
    writer.save(1, {})
    writer.finish()


def load_weights_step_and_save(config: Config, source: Path) -> None:
    """Load only the weights, take a step without gradients, and save what the engine then holds."""
    from megalm.checkpoint import CheckpointWriter, load_weights
    from megalm.engine.build import build_engine
    from megalm.parallel.layout import create_layout
    from megalm.train.data import TrainingData, open_stream
    from megalm.train.pretrain import NextTokenLoss

    engine = build_engine(config, create_layout(config.parallel))
    load_weights(engine, source)
    microbatches = TrainingData(config, engine.layout, open_stream(config, config.data.train, None)).next()
    for microbatch in microbatches:
        microbatch.loss_mask_BS.zero_()
    assert not engine.step(microbatches, NextTokenLoss(), 1e-3).skipped
    writer = CheckpointWriter(Path(config.run.dir), config, engine)
    writer.save(1, {})
    writer.finish()


def padded(layout: str) -> str:
    return f"model.make_vocab_size_divisible_by={PADDING.get(layout, 1)}"


@pytest.mark.parametrize(("origin", "target"), PAIRS)
def test_other_layout_continues_with_the_same_numbers(
    tmp_path: Path, data: Path, saved, origin: str, target: str
) -> None:
    """Every tensor bit for bit, Adam's count, the next batch, and the next losses within 1e-6."""
    source, tensors, losses, norms = saved(origin, padded(origin))
    found = continue_in(target, tmp_path, data, source, padded(target))
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert sorted(found.samples) == list(range(STEPS * GLOBAL_BATCH, (STEPS + 1) * GLOBAL_BATCH))
    assert found.losses == pytest.approx(losses, rel=1e-6)
    assert found.norms == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize(
    ("origin", "target"),
    [
        ("PP2xVP2", "one process"),
        ("one process", "PP2xVP2"),
        ("PP2xVP2", "PP2 uneven"),
        ("PP2 uneven", "PP2xVP2"),
        ("PP2 uneven", "DP2+ZeRO-1"),
        ("CP2", "TP2xPP2"),
        ("TP2", "CP2"),
        ("CP2xTP2+ZeRO-1", "PP2xVP2"),
        ("DP2+ZeRO-1", "CP2xTP2+ZeRO-1"),
    ],
)
def test_other_axes_continue_with_the_same_numbers(
    tmp_path: Path, data: Path, saved, origin: str, target: str
) -> None:
    deeper = "model.num_layers=4"
    source, tensors, losses, norms = saved(origin, deeper)
    found = continue_in(target, tmp_path, data, source, deeper)
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert found.losses == pytest.approx(losses, rel=1e-6)
    assert found.norms == pytest.approx(norms, rel=1e-5)


def test_next_batch_is_the_same_under_every_layout(tmp_path: Path, data: Path, saved) -> None:
    source = saved("one process", padded("one process"))[0]
    batches = [continue_in(layout, tmp_path / layout, data, source).samples for layout in LAYOUTS]
    for batch in batches:
        assert batch.keys() == batches[0].keys()
        assert all(np.array_equal(batch[number], tokens) for number, tokens in batches[0].items())
    assert all(tokens.shape == (SEQUENCE,) for tokens in batches[0].values())


@pytest.mark.parametrize(("origin", "target"), [("PP2", "TP2"), ("TP2xPP2", "DP2+ZeRO-1")])
def test_untied_embeddings_change_layout_too(
    tmp_path: Path, data: Path, saved, origin: str, target: str
) -> None:
    untied = "model.tie_embeddings=false"
    source, tensors, losses, _ = saved(origin, untied)
    assert "output_layer.weight" in tensors
    found = continue_in(target, tmp_path, data, source, untied)
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert found.losses == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize(
    ("origin", "target", "dtype"),
    [
        ("TP2", "DP2+ZeRO-1", "bf16"),
        ("DP2+ZeRO-1", "TP2xPP2", "bf16"),
        ("PP2", "one process", "bf16"),
        ("DP2+ZeRO-1", "TP2", "fp16"),
        ("PP2", "DP2+ZeRO-1", "fp16"),
    ],
)
def test_16_bit_run_changes_layout_with_its_masters(
    tmp_path: Path, data: Path, saved, origin: str, target: str, dtype: str
) -> None:
    precision = f"precision.dtype={dtype}"
    source, tensors, losses, _ = saved(origin, precision)
    found = continue_in(target, tmp_path, data, source, precision)
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert found.losses == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("target", ["one process", "DP2+ZeRO-1"])
def test_bf16_run_goes_on_in_fp32_from_its_masters(tmp_path: Path, data: Path, saved, target: str) -> None:
    source, tensors, losses, _ = saved("TP2", "precision.dtype=bf16")
    found = continue_in(target, tmp_path, data, source, "precision.dtype=fp32")
    expected = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer.master."):
            weight = name.removeprefix("optimizer.master.")
            expected[weight] = tensor
            assert not torch.equal(tensors[weight].float(), tensor), f"{weight}: bf16 holds all of its master"
        elif name.startswith("optimizer."):
            expected[name] = tensor
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), expected)
    assert found.losses == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("target", ["one process", "DP2+ZeRO-1"])
def test_fp32_run_goes_on_in_bf16_with_its_weights_as_masters(
    tmp_path: Path, data: Path, saved, target: str
) -> None:
    source, tensors, losses, _ = saved("one process", "precision.dtype=fp32")
    found = continue_in(target, tmp_path, data, source, "precision.dtype=bf16")
    expected = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            expected[name] = tensor
        else:
            expected |= {name: tensor.bfloat16(), f"optimizer.master.{name}": tensor}
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), expected)
    assert found.losses == pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize(("dtype", "rounded"), [("fp64", torch.float64), ("fp32", torch.float32)])
def test_fp64_run_goes_on_in_fp64_and_in_fp32(
    tmp_path: Path, data: Path, saved, dtype: str, rounded: torch.dtype
) -> None:
    source, tensors, losses, _ = saved("PP2", "precision.dtype=fp64")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float64}
    found = continue_in("TP2", tmp_path, data, source, f"precision.dtype={dtype}")
    expected = {name: tensor.to(rounded) for name, tensor in tensors.items()}
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), expected)
    assert found.losses == pytest.approx(losses, rel=1e-12 if dtype == "fp64" else 1e-5)


@pytest.mark.parametrize("origin", ["one process", "TP2xPP2"])
def test_optimizer_in_several_padded_buckets_loses_nothing(
    tmp_path: Path, data: Path, saved, origin: str
) -> None:
    """Into buckets and, by a second engine, out of them; the library's own format loses elements here."""
    source, tensors, losses, norms = saved(origin, padded(origin))
    target = "DP2+ZeRO-1"
    settings = (padded(target), "parallel.ddp_bucket_size=30000", "parallel.overlap_param_gather=true")
    found = continue_in(target, tmp_path / "buckets", data, source, *settings, work=continue_with_buckets)
    written = find_checkpoint(tmp_path / "buckets")
    assert_equal_tensors(stored_tensors(written), tensors)
    assert (found.losses, found.norms) == (pytest.approx(losses, rel=1e-6), pytest.approx(norms, rel=1e-5))
    back = continue_in(origin, tmp_path / "back", data, written, padded(origin))
    assert back.losses == pytest.approx(losses, rel=1e-6)
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path / "back")), tensors)


@pytest.mark.parametrize(("target", "dtype", "limit"), [("PP2", "fp32", 1), ("DP2+ZeRO-1", "bf16", 100_000)])
def test_checkpoint_read_in_portions_is_the_same(
    tmp_path: Path, data: Path, saved, target: str, dtype: str, limit: int
) -> None:
    """Also where one stage reads more portions than the other."""
    precision = f"precision.dtype={dtype}"
    source, tensors, losses, _ = saved("TP2", precision)
    found = continue_in(
        target, tmp_path, data, source, precision, work=functools.partial(continue_in_portions, limit)
    )
    assert_equal_tensors(stored_tensors(find_checkpoint(tmp_path)), tensors)
    assert found.losses == pytest.approx(losses, rel=1e-2 if dtype == "bf16" else 1e-6)


@pytest.mark.parametrize("target", ["one process", "DP2+ZeRO-1"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_weights_alone_come_with_their_full_precision_and_without_moments(
    tmp_path: Path, data: Path, saved, target: str, dtype: str
) -> None:
    """A bf16 engine takes the masters of a bf16 run, and the weights of a fp32 run as masters."""
    tensors = saved("TP2", f"precision.dtype={dtype}")[1]
    world_size, overrides = ALL_LAYOUTS[target]
    config = run_config(tmp_path, data, *MODEL, *overrides, "precision.dtype=bf16")
    source = saved("TP2", f"precision.dtype={dtype}")[0]
    run_distributed(load_weights_and_save, world_size, config, source)
    found = stored_tensors(find_checkpoint(tmp_path))
    weights = [name for name in tensors if not name.startswith("optimizer.")]
    assert len(found) == 4 * len(weights)
    for name in weights:
        precise = tensors[f"optimizer.master.{name}" if dtype == "bf16" else name]
        assert torch.equal(found[f"optimizer.master.{name}"], precise), name
        assert torch.equal(found[name], precise.bfloat16()), name
        assert not found[f"optimizer.exp_avg.{name}"].any(), name
