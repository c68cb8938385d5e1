"""A checkpoint of ours as a row of whole tensors: written and read one at a time, without process groups."""

import io
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from megalm.checkpoint.metadata import Shard, TensorInfo
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


def write_stored(
    folder: Path, entries: Sequence[Entry], places: Callable[[str], Place], empty: Sequence[str] = ()
) -> None:
    """Write tensors in torch's sharded format into `folder`; each is made when its turn comes.

    places: where each parameter goes. empty: names of objects to write that say nothing, None in a list. The files that
    Megatron-Core looks for beside them are written too, but for common.pt.
    """
    folder.mkdir(parents=True)
    writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True, thread_count=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is meant
        dcp.save({}, storage_writer=writer, planner=_Planner(entries, places, empty), no_dist=True)
    backends = {"sharded_backend": "torch_dist", "common_backend": "torch"}
    versions = {f"{name}_version": 1 for name in backends}
    (folder / "metadata.json").write_text(json.dumps(backends | versions))


class _Planner(DefaultSavePlanner):
    """Hands torch's writer one tensor after another."""

    def __init__(
        self, entries: Sequence[Entry], places: Callable[[str], Place], empty: Sequence[str]
    ) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.items = [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in empty]
        self.makers: dict[MetadataIndex, tuple[Entry, int]] = {}
        for entry in entries:
            place = places(entry.name)
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
        if write_item.type == WriteItemType.BYTE_IO:
            content = io.BytesIO()
            torch.save([None], content)
            return content
        entry, leads = self.makers[write_item.index]
        tensor = entry.make()
        if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
            raise UserError(
                f"{entry.name} has shape {tuple(tensor.shape)} and format {tensor.dtype}, expected {entry.shape} and "
                f"{entry.dtype}"
            )
        return tensor[(None,) * leads].contiguous()


class StoredTensors:
    """The weights in a directory of torch's sharded format, each read when it is asked for, without padded rows.

    places: where a parameter of ours may be stored; the first place that is there counts.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        model: ModelConfig,
        places: Callable[[str], Iterable[Place]] | None = None,
    ) -> None:
        self.folder = folder
        self.tensors = tensors
        self.model = model
        self.places = places or (lambda name: [place_of(name, model)])

    def outline(self, name: str) -> Tensor:
        """A parameter by our own name without numbers, on torch's meta device."""
        place, found = self._find(name)
        whole = torch.empty(found.shape[len(place.lead) :], dtype=found.dtype, device="meta")
        return self._without_padding(name, whole)

    def read(self, name: str) -> Tensor:
        """A parameter, put together from its pieces."""
        place, found = self._find(name)
        leads = len(place.lead)
        whole = torch.empty(found.shape[leads:], dtype=found.dtype)
        for shard in found.shards:
            if all(o <= at < o + n for o, n, at in zip(shard.offset, shard.shape, place.lead, strict=False)):
                at = tuple(at - o for at, o in zip(place.lead, shard.offset, strict=False))
                rows = zip(shard.offset[leads:], shard.shape[leads:], strict=True)
                whole[tuple(slice(o, o + n) for o, n in rows)] = self._piece(shard).view(shard.shape)[at]
        return self._without_padding(name, whole)

    def has(self, name: str) -> bool:
        """Whether a parameter is there."""
        return any(place.key in self.tensors for place in self.places(name))

    def _find(self, name: str) -> tuple[Place, TensorInfo]:
        for place in self.places(name):
            found = self.tensors.get(place.key)
            if found is not None and found.shape[: len(place.lead)] == place.counts:
                return place, found
        raise UserError(f"{self.folder} has no tensor {name}: it holds another model than its settings say")

    def _without_padding(self, name: str, whole: Tensor) -> Tensor:
        return whole[: self.model.vocab_size] if name in VOCABULARY else whole

    def _piece(self, shard: Shard) -> Tensor:
        path = self.folder / shard.file
        with open(path, "rb") as source:
            source.seek(shard.start)
            content = io.BytesIO(source.read(shard.length))
        try:
            return torch.load(content, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{path}: not a tensor at byte {shard.start} ({reason}); use another checkpoint"
            ) from None
