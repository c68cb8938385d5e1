"""ZeRO-3 holds, saves and loads far less than the whole model and optimizer on a rank: bytes of tensors, counted."""

import weakref
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from megalm.engine.base import Engine
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world


class CountedMemory(TorchDispatchMode):
    """Bytes of the storages that operators made and that still live, and the most of them at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count what it made."""
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor) and value.device.type == "cpu":
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes or not size:
            return
        self.sizes[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def whole_bytes(engine: Engine) -> int:
    """What one process that trains the whole model keeps: weights and optimizer as a checkpoint holds them, fp32 gradients."""
    state = engine.state()
    weights = sum(shard.data.numel() for key, shard in state.items() if not key.startswith("optimizer."))
    total = torch.tensor(sum(shard.data.nbytes for shard in state.values()) + 4 * weights)
    dist.all_reduce(total)
    return int(total)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@in_world(4)
def test_a_rank_of_four_saves_and_loads_within_60_percent_of_the_whole(dtype: str, tmp_path: Path) -> None:
    """The copies that are being written and all that training keeps count too: gradients, buckets, padding."""
    from megalm.checkpoint import CheckpointWriter, load_training_state, read

    model = ("model.num_layers=16", "model.hidden_size=128", "model.ffn_hidden_size=320")
    setting = (*model, f"precision.dtype={dtype}", "checkpoint.async_save=false")
    config = tiny_config("llama-tiny", *setting, "engine=deepspeed", "parallel.zero_stage=3")
    with CountedMemory() as memory:
        engine = tiny_engine(config)
        built = memory.peak
        engine.step(tiny_microbatches(0, engine.layout), NextTokenLoss(), LR)
        whole = whole_bytes(engine)
        writer = CheckpointWriter(tmp_path, config, engine)
        memory.peak = kept = memory.now
        writer.save(1, {"step": 1, "counters": engine.counters})
        saving, memory.peak = memory.peak, memory.now
        with mock.patch.object(read, "PORTION_BYTES", whole // 50):
            load_training_state(engine, tmp_path / "checkpoints" / "step_00000001")
        loading = memory.peak
    shares = {"built": built, "kept": kept, "saving": saving, "loading": loading}
    shares = {name: size / whole for name, size in shares.items()}
    print(shares)
    assert 0.25 < shares["kept"] < shares["loading"] < shares["saving"] < 0.55, shares
    assert shares["built"] < 0.4, shares
