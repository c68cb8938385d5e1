"""Reads a checkpoint's table of tensors without running what a stranger may have put into it.

Torch stores the table as a pickle, and unpickling runs code. Only the names that such a table is made of are let through,
and only entries that are tensors: torch would unpickle any other entry without such a check.
"""

import enum
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megalm.checkpoint.directory import TENSORS
from megalm.errors import UserError

_ALLOWED = {
    "torch": {"Size", "device", *(n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "Path", "PurePosixPath"},
    "pathlib._local": {"PosixPath"},
    "megatron.core.dist_checkpointing.core": {"CheckpointingConfig"},
}


_FILE_NAME = re.compile(r"__\d+_\d+\.distcp")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def _member(of: Any, name: str) -> Any:
    """What Python 3.11.0 to 3.11.3 wrote getattr(class, name) for."""
    if not (isinstance(of, type) and issubclass(of, enum.Enum) and name in of.__members__):
        raise pickle.UnpicklingError(f"it refers to {name!r} of {of!r}")
    return of[name]


class Shard(NamedTuple):
    """A part of a tensor: where it begins in the whole, its shape, and the bytes of the file that hold it."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass
class TensorInfo:
    """A tensor of a checkpoint: its whole shape, its format and its shards."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    shards: list[Shard]


def read_tensors(path: str | Path) -> dict[str, TensorInfo]:
    """Names and shapes of all tensors in the checkpoint at `path`, without reading them.

    Raises UserError if the table is missing, damaged, or holds anything but a table of tensors.
    """
    return read_table(Path(path) / TENSORS)


def read_table(folder: Path, tensors_alone: bool = True) -> dict[str, TensorInfo]:
    """The same of any directory in torch's sharded format; without `tensors_alone` other entries are left out."""
    file = folder / ".metadata"
    try:
        metadata = _Reader(io.BytesIO(file.read_bytes())).load()
        entries = {
            key: entry
            for key, entry in sorted(metadata.state_dict_metadata.items())
            if tensors_alone or type(entry) is TensorStorageMetadata
        }
        files = {
            (index.fqn, tuple(index.offset or ())): _bytes_of(info)
            for index, info in metadata.storage_data.items()
            if index.fqn in entries
        }
        return {key: _tensor_info(key, entry, files) for key, entry in entries.items()}
    except FileNotFoundError:
        raise UserError(f"{file}: missing; {folder} holds no tensors of a checkpoint") from None
    except Exception as error:
        raise UserError(f"{file}: not a table of tensors ({error}); do not use this checkpoint") from None


def _tensor_info(key: str, entry: Any, files: dict[tuple[str, tuple[int, ...]], Any]) -> TensorInfo:
    if type(entry) is not TensorStorageMetadata:
        raise ValueError(f"{key} is a {type(entry).__name__}, not a tensor")
    shards = [
        Shard(tuple(chunk.offsets), tuple(chunk.sizes), *files[key, tuple(chunk.offsets)])
        for chunk in entry.chunks
    ]
    return TensorInfo(tuple(entry.size), entry.properties.dtype, shards)


def _bytes_of(info: Any) -> tuple[str, int, int]:
    """Name of a file beside the table, and its part; a path to anywhere else is refused."""
    name = info.relative_path
    if not (isinstance(name, str) and _FILE_NAME.fullmatch(name)):
        raise ValueError(f"it refers to the file {name!r}")
    return name, int(info.offset), int(info.length)
