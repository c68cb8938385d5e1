"""Reads whole tensors out of a checkpoint with torch's own reader, to compare what megalm reads and writes with."""

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from megalm.checkpoint.directory import TENSORS
from megalm.checkpoint.metadata import read_tensors
from tests.train.runs import VOCABULARY

_TABLES = ("word_embeddings.weight", "output_layer.weight")


def stored_tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, tables of the vocabulary without their padding, which must be zero."""
    state = {name: torch.full(t.shape, 7, dtype=t.dtype) for name, t in read_tensors(checkpoint).items()}
    dcp.load(state, checkpoint_id=checkpoint / TENSORS, no_dist=True)
    for name, tensor in state.items():
        if name.endswith(_TABLES):
            assert not tensor[VOCABULARY:].any(), f"{name}: padding is not zero"
            state[name] = tensor[:VOCABULARY]
    return state


def assert_equal_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same names, formats and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
