"""A checkpoint from a stranger runs none of the stranger's code, whichever of its files holds it."""

import io
import os
import pickle
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import WriteItemType

from megalm.checkpoint.directory import find_checkpoint, write_manifest
from megalm.checkpoint.inspect import inspect_checkpoint
from megalm.checkpoint.metadata import read_tensors
from megalm.config import Config
from megalm.errors import UserError
from megalm.testing import RankError, run_distributed
from tests.train.runs import run_config, train_in_world

WEIGHT = "decoder.final_layernorm.weight"


class Payload:
    """Unpickling it runs a command that makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory: Path = tmp_path_factory.mktemp("good")
    train_in_world(1, run_config(directory, data, "train.exit_after_steps=1"))
    return find_checkpoint(directory)


@pytest.fixture
def checkpoint(tmp_path: Path, good: Path) -> Path:
    """A good checkpoint to spoil."""
    return shutil.copytree(good, tmp_path / "step_00000001")


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """The file that is there once code has run."""
    return tmp_path / "evidence"


def read_table(checkpoint: Path) -> Metadata:
    return pickle.loads((checkpoint / "tensors" / ".metadata").read_bytes())


def write_table(checkpoint: Path, table: Any) -> None:
    (checkpoint / "tensors" / ".metadata").write_bytes(pickle.dumps(table))


def store(checkpoint: Path, table: Metadata, index: MetadataIndex, content: bytes) -> None:
    """Let the table's entry `index` point to a new file of that content."""
    info = next(iter(table.storage_data.values()))
    table.storage_data[index] = type(info)("__9_9.distcp", 0, len(content))
    (checkpoint / "tensors" / "__9_9.distcp").write_bytes(content)


def saved_by_torch(payload: Payload) -> bytes:
    content = io.BytesIO()
    torch.save(payload, content)
    return content.getvalue()


def in_the_table(checkpoint: Path, payload: Payload) -> None:
    table = read_table(checkpoint)
    table.planner_data = payload
    write_table(checkpoint, table)


def as_the_table(checkpoint: Path, payload: Payload) -> None:
    write_table(checkpoint, payload)


def as_an_entry_that_is_no_tensor(checkpoint: Path, payload: Payload) -> None:
    table = read_table(checkpoint)
    table.state_dict_metadata[WEIGHT] = BytesStorageMetadata()
    store(checkpoint, table, MetadataIndex(WEIGHT), saved_by_torch(payload))
    write_table(checkpoint, table)


def as_an_entry_that_poses_as_a_tensor(checkpoint: Path, payload: Payload) -> None:
    """Torch decides by the class what it unpickles; the attributes of a tensor can be added to any class."""
    table = read_table(checkpoint)
    impostor = BytesStorageMetadata()
    vars(impostor).update(vars(table.state_dict_metadata[WEIGHT]))
    table.state_dict_metadata[WEIGHT] = impostor
    store(checkpoint, table, MetadataIndex(WEIGHT), saved_by_torch(payload))
    write_table(checkpoint, table)


def in_a_file_of_tensors(checkpoint: Path, payload: Payload) -> None:
    table = read_table(checkpoint)
    index = next(index for index in table.storage_data if index.fqn == WEIGHT)
    store(checkpoint, table, index, saved_by_torch(payload))
    write_table(checkpoint, table)


def in_the_common_file(checkpoint: Path, payload: Payload) -> None:
    (checkpoint / "tensors" / "common.pt").write_bytes(saved_by_torch(payload))


def load(config: Config, path: Path) -> None:
    """Load where torch was told to trust every file that it is not told to distrust."""
    from megalm.checkpoint import load_training_state
    from tests.tiny import tiny_engine

    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        load_training_state(tiny_engine(config), path)
    finally:
        del os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"]


def sign(checkpoint: Path) -> None:
    """Make the checksums right again, as a stranger would."""
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, {})


def error_of_load(checkpoint: Path, directory: Path, data: Path) -> str:
    sign(checkpoint)
    with pytest.raises(RankError) as caught:
        run_distributed(load, 1, run_config(directory, data), checkpoint)
    return str(caught.value)


def test_the_payload_works(evidence: Path) -> None:
    pickle.loads(pickle.dumps(Payload(evidence)))
    assert evidence.exists()


@pytest.mark.parametrize(
    ("hide", "message"),
    [
        (in_the_table, "it refers to posix.system"),
        (as_the_table, "it refers to posix.system"),
        (as_an_entry_that_is_no_tensor, "BytesStorageMetadata"),
        (as_an_entry_that_poses_as_a_tensor, "BytesStorageMetadata"),
        (in_the_common_file, "common.pt: not a plain file of torch"),
        (in_a_file_of_tensors, ""),
    ],
)
def test_hidden_code_is_refused_and_not_run(
    tmp_path: Path,
    data: Path,
    checkpoint: Path,
    evidence: Path,
    hide: Callable[[Path, Payload], None],
    message: str,
) -> None:
    hide(checkpoint, Payload(evidence))
    said = error_of_load(checkpoint, tmp_path, data)
    assert message in said and ("UserError" in said or not message)
    assert not evidence.exists()


@pytest.mark.parametrize(
    "hide",
    [in_the_table, as_the_table, as_an_entry_that_is_no_tensor, as_an_entry_that_poses_as_a_tensor],
)
def test_inspecting_runs_no_code(
    checkpoint: Path, evidence: Path, hide: Callable[[Path, Payload], None]
) -> None:
    hide(checkpoint, Payload(evidence))
    sign(checkpoint)
    for read in (read_tensors, inspect_checkpoint):
        with pytest.raises(UserError, match="not a table of tensors .*; do not use this checkpoint"):
            read(checkpoint)
    assert not evidence.exists()


@pytest.mark.parametrize("name", ["../../state.json", "/etc/hostname", "..", ""])
def test_a_table_cannot_name_files_elsewhere(checkpoint: Path, name: str) -> None:
    table = read_table(checkpoint)
    for info in table.storage_data.values():
        info.relative_path = name
    write_table(checkpoint, table)
    with pytest.raises(UserError, match="refers to the file"):
        read_tensors(checkpoint)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps([1])])
def test_what_is_no_table_is_explained(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "tensors" / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match="not a table of tensors"):
        read_tensors(checkpoint)


def test_a_good_table_is_read(good: Path) -> None:
    table = read_table(good)
    tensors = read_tensors(good)
    assert tensors.keys() == table.state_dict_metadata.keys()
    for name, entry in table.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        assert tensors[name].shape == tuple(entry.size) and tensors[name].dtype == entry.properties.dtype
        assert len(tensors[name].shards) == len(entry.chunks)


class Lookup:
    """Unpickling it calls getattr."""

    def __init__(self, target: Any, name: str) -> None:
        self.arguments = target, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.arguments


class ByName(pickle.Pickler):
    """Writes members of an Enum as Python 3.11.0 to 3.11.3 did: by a call of getattr."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_a_table_of_an_early_python_3_11_is_read_and_a_call_of_getattr_does_nothing_else(
    good: Path, checkpoint: Path
) -> None:
    written = io.BytesIO()
    ByName(written).dump(read_table(good))
    assert b"getattr" in written.getvalue()
    (checkpoint / "tensors" / ".metadata").write_bytes(written.getvalue())
    assert read_tensors(checkpoint) == read_tensors(good)
    for target, name in ((torch.Size, "__reduce__"), (WriteItemType, "mro"), (WriteItemType.TENSOR, "name")):
        table = read_table(good)
        table.planner_data = Lookup(target, name)
        write_table(checkpoint, table)
        with pytest.raises(UserError, match="it refers to"):
            read_tensors(checkpoint)
