"""Fine-tuning on packed conversations: nothing leaks between them, and every layout finds the same loss and gradients."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from megalm.dataset.opening import open_text
from megalm.dataset.pack_stream import PackStream
from megalm.testing import run_distributed
from megalm.train.tasks import task_of
from tests.chats import build_chats, make_chats, make_tokenizer, write_chats
from tests.parity.runs import BETA1, assert_same_tensors
from tests.parity.shards import Piece, assemble, pieces_of_state
from tests.tiny import tiny_config, tiny_engine, to_microbatches

LENGTH, ROWS = 64, 8
TP2 = "parallel.tensor_model_parallel_size=2"
LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "TP2+SP": (2, (TP2, "parallel.sequence_parallel=true")),
    "PP2": (2, ("parallel.pipeline_model_parallel_size=2",)),
    "CP2": (2, ("parallel.context_parallel_size=2",)),
    "DP2": (2, ()),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations for more than `ROWS` packs, those that no pack holds left out."""
    folder: Path = tmp_path_factory.mktemp("chats")
    inputs = [write_chats(folder / "a.jsonl", make_chats(40))]
    build_chats(inputs, make_tokenizer(folder), folder / "d", max_length=LENGTH, max_rejected=0.9)
    return folder / "d_train"


def step(data: Path, rows: int, overrides: tuple[str, ...]) -> tuple[float, float, list[Piece]]:
    """Loss, counted tokens and gradients of one step on the first `rows` samples (0: an epoch)."""
    blend = f"[{{path: {data}}}]"
    settings = ("task=sft", f"data.train={blend}", f"batch.seq_length={LENGTH}", "optimizer.clip_grad=0")
    config = tiny_config("llama-tiny", *settings, f"model.max_sequence_length={LENGTH}", *overrides)
    stream = open_text(config, config.data.train, None)
    assert isinstance(stream, PackStream)
    batch = stream.batch(np.arange(rows or stream.packs[0].count))
    engine = tiny_engine(config)
    microbatches = to_microbatches(batch, engine.layout, config.batch.micro_batch_size)
    found = engine.step(microbatches, task_of(config).make_loss(config), 1e-3)
    return found.loss, found.weight, pieces_of_state(engine.state(), "optimizer.exp_avg.")


@cache
def run(
    world_size: int, data: Path, rows: int, overrides: tuple[str, ...]
) -> tuple[float, float, dict[str, Tensor]]:
    ranks = run_distributed(step, world_size, data, rows, overrides)
    gradients = assemble(rank[2] for rank in ranks)
    return ranks[0][0], ranks[0][1], {name: tensor / (1 - BETA1) for name, tensor in gradients.items()}


def assert_same(found: tuple, expected: tuple) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12) and found[1] == expected[1] > 0
    assert_same_tensors(found[2], expected[2], 1e-12)


def test_packed_conversations_have_the_loss_and_gradients_of_one_a_sample(data: Path) -> None:
    one = ("batch.micro_batch_size=1",)
    assert_same(run(1, data, 0, one), run(1, data, 0, (*one, "sft.packing=false")))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_finds_the_loss_and_gradients_of_one_process(data: Path, layout: str) -> None:
    world_size, overrides = LAYOUTS[layout]
    assert_same(run(world_size, data, ROWS, overrides), run(1, data, ROWS, ()))
