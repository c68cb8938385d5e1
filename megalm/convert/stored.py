"""A checkpoint of ours as a row of whole tensors: written and read one at a time, without process groups."""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from megalm.checkpoint.directory import TENSORS
from megalm.checkpoint.metadata import read_tensors
from megalm.config.model import ModelConfig
from megalm.errors import UserError

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")
"""Parameters whose first axis is the vocabulary, padded for the layout."""


@dataclass(frozen=True)
class Place:
    """Where a parameter is stored: in the tensor `key`, at the numbers `lead` of its leading axes."""

    key: str
    lead: tuple[int, ...]
    counts: tuple[int, ...]
    """Lengths of those axes: layers, experts."""


def place_of(name: str, model: ModelConfig) -> Place:
    """The place of a parameter by our own name of it (see `megalm.model.init.canonical_name`)."""
    lead, counts = [], []
    # where dense layers and layers with experts take turns, the library keeps layers apart
    together = model.moe.num_experts == 0 or model.moe.layer_frequency == 1
    if together and (found := re.match(r"(\w+\.layers)\.(\d+)\.(.*)", name)):
        name = f"{found[1]}.{found[3]}"
        lead.append(int(found[2]))
        counts.append(model.num_layers)
    if found := re.match(r"(.*\.experts)\.(\d+)\.(.*)", name):
        name = f"{found[1]}.{found[3]}"
        lead.append(int(found[2]))
        counts.append(model.moe.num_experts)
    return Place(name, tuple(lead), tuple(counts))


@dataclass(frozen=True)
class Entry:
    """A parameter to be written: its name, shape and format, and what makes it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


def write_stored(folder: Path, entries: Sequence[Entry], model: ModelConfig) -> None:
    """Write the directory `tensors` of a checkpoint into `folder`; each tensor is made when its turn comes."""
    tensors = folder / TENSORS
    tensors.mkdir(parents=True)
    writer = dcp.FileSystemWriter(tensors, single_file_per_rank=True, sync_files=True, thread_count=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant
        dcp.save({}, storage_writer=writer, planner=_Planner(entries, model), no_dist=True)
    torch.save({}, tensors / "common.pt")
    backends = {"sharded_backend": "torch_dist", "common_backend": "torch"}
    versions = {f"{name}_version": 1 for name in backends}
    (tensors / "metadata.json").write_text(json.dumps(backends | versions))


class _Planner(DefaultSavePlanner):
    """Hands torch's writer one tensor after another."""

    def __init__(self, entries: Sequence[Entry], model: ModelConfig) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.items: list[WriteItem] = []
        self.makers: dict[MetadataIndex, tuple[Entry, int]] = {}
        for entry in entries:
            place = place_of(entry.name, model)
            offset = torch.Size(place.lead + (0,) * len(entry.shape))
            index = MetadataIndex(place.key, offset)
            chunk = ChunkStorageMetadata(offset, torch.Size((1,) * len(place.lead) + entry.shape))
            data = TensorWriteData(
                chunk, TensorProperties(dtype=entry.dtype), torch.Size(place.counts + entry.shape)
            )
            self.items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
            self.makers[index] = (entry, len(place.lead))

    def create_local_plan(self) -> SavePlan:
        """One piece for each parameter."""
        self.plan = SavePlan(self.items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """Make the parameter that is to be written now."""
        entry, leads = self.makers[write_item.index]
        tensor = entry.make()
        if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
            raise UserError(
                f"{entry.name} has shape {tuple(tensor.shape)} and format {tensor.dtype}, expected {entry.shape} and {entry.dtype}"
            )
        return tensor[(None,) * leads].contiguous()


class StoredTensors:
    """The weights of a checkpoint, each read when it is asked for, without padding of the vocabulary."""

    def __init__(self, checkpoint: Path, model: ModelConfig) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.tensors = read_tensors(checkpoint)

    def read(self, name: str) -> Tensor:
        """A parameter by our own name, put together from its pieces."""
        place = place_of(name, self.model)
        found = self.tensors.get(place.key)
        if found is None or found.shape[: len(place.lead)] != place.counts:
            raise UserError(
                f"{self.checkpoint} has no tensor {name}: its config.yaml describes another model"
            )
        whole = torch.empty(found.shape[len(place.lead) :], dtype=found.dtype)
        for shard in found.shards:
            if shard.offset[: len(place.lead)] != place.lead:
                continue
            rows = [slice(o, o + n) for o, n in zip(shard.offset, shard.shape, strict=True)]
            whole[tuple(rows[len(place.lead) :])] = self._piece(shard.file, shard.start, shard.length).view(
                shard.shape[len(place.lead) :]
            )
        return whole[: self.model.vocab_size] if place.key in VOCABULARY else whole

    def names(self) -> Iterable[str]:
        """Keys of the stored weights."""
        return [name for name in self.tensors if not name.startswith("optimizer.")]

    def _piece(self, file: str, start: int, length: int) -> Tensor:
        path = self.checkpoint / TENSORS / file
        with open(path, "rb") as source:
            source.seek(start)
            content = io.BytesIO(source.read(length))
        try:
            return torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{path}: not a tensor at byte {start} ({reason}); use another checkpoint"
            ) from None
