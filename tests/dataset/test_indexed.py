"""The .bin/.idx format: Megatron-Core reads ours, we read its, byte for byte, in bounded memory."""

import hashlib
import importlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, IndexedDatasetWriter
from megalm.dataset.indexed import DTYPE_OF_CODE, token_dtype
from megalm.errors import UserError
from megalm.parallel import cpu

cpu.install()  # other tests of this process need megatron.core as it runs on the CPU
megatron = importlib.import_module("megatron.core.datasets.indexed_dataset")

# Documents of several sequences, of one, of an empty one and of none.
DOCUMENTS = [[[5, 6, 7], [8]], [[9]], [[], [1, 2]], [[]], [], [[3, 4]]]


def write_with_megatron(prefix: Path, dtype: type) -> Path:
    import torch

    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in DOCUMENTS:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def write_with_megalm(prefix: Path, dtype: np.dtype) -> Path:
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for document in DOCUMENTS:
            tokens = np.array([t for sequence in document for t in sequence], np.int64)
            lengths = np.array([len(sequence) for sequence in document], np.int64)
            writer.add_documents(tokens, lengths, np.array([len(document)]))
    return prefix


def read_all(prefix: Path) -> bytes:
    return Path(f"{prefix}.bin").read_bytes() + Path(f"{prefix}.idx").read_bytes()


@pytest.mark.parametrize("code", range(1, 9))
def test_files_equal_megatrons_byte_for_byte_in_every_type(tmp_path, code):
    theirs = write_with_megatron(tmp_path / "theirs", megatron.DType.dtype_from_code(code))
    ours = write_with_megalm(tmp_path / "ours", DTYPE_OF_CODE[code])
    assert read_all(ours) == read_all(theirs)


@pytest.mark.parametrize("code", range(1, 9))
def test_we_read_what_megatron_wrote(tmp_path, code):
    dtype = megatron.DType.dtype_from_code(code)
    dataset = IndexedDataset(write_with_megatron(tmp_path / "theirs", dtype))
    sequences = [sequence for document in DOCUMENTS for sequence in document]
    assert dataset.dtype == dtype
    assert [dataset[i].tolist() for i in range(len(dataset))] == sequences
    assert dataset[-1].tolist() == [3, 4]
    assert dataset.num_documents == len(DOCUMENTS)
    assert dataset.document_starts(np.arange(7)).tolist() == [0, 4, 5, 7, 7, 7, 9]


def test_megatron_reads_what_we_wrote(write_dataset):
    prefix = write_dataset("ours", [3, 1, 0, 7], dtype="<u2")
    dataset = megatron.IndexedDataset(str(prefix))
    assert [dataset[i].tolist() for i in range(len(dataset))] == [[0, 1, 2], [3], [], [4, 5, 6, 7, 8, 9, 10]]
    assert dataset.document_indices.tolist() == [0, 1, 2, 3, 4]
    assert dataset.get(3, offset=2, length=3).tolist() == [6, 7, 8]


@pytest.mark.parametrize("vocab_size", [100, 65499, 65500, 65535, 65536, 200_000])
def test_type_of_ids_is_megatrons_choice(vocab_size):
    assert token_dtype(vocab_size) == megatron.DType.optimal_dtype(vocab_size)


def test_the_document_of_every_token_is_found(write_dataset):
    lengths = [3, 1, 0, 0, 7, 2, 0]
    dataset = IndexedDataset(write_dataset("a", lengths))
    expected = np.repeat(np.arange(len(lengths)), lengths)
    assert dataset.document_at(np.arange(sum(lengths))).tolist() == expected.tolist()


def test_lengths_longer_than_a_write_block_are_kept(write_dataset, monkeypatch):
    monkeypatch.setattr("megalm.dataset.writer.BLOCK", 3)
    dataset = IndexedDataset(write_dataset("a", [2, 1, 3, 4, 5, 1, 1]))
    assert dataset.sequence_lengths.tolist() == [2, 1, 3, 4, 5, 1, 1]
    assert (dataset.sequence_pointers // 4).tolist() == [0, 2, 3, 6, 10, 15, 16]


def test_zeros_at_the_end_are_in_the_file(tmp_path):
    with IndexedDatasetWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        for ids in ([0, 0], [5, 0], [0, 0, 0]):
            writer.add_document(np.array(ids))
    assert (tmp_path / "a.bin").read_bytes() == np.array([0, 0, 5, 0, 0, 0, 0], "<u2").tobytes()
    assert writer.sha256 == hashlib.sha256((tmp_path / "a.bin").read_bytes()).hexdigest()


def test_tokens_outside_the_data_raise(write_dataset):
    dataset = IndexedDataset(write_dataset("a", [3, 2]))
    assert dataset.tokens(2, 3).tolist() == [2, 3, 4]
    for start, count in [(-1, 2), (4, 2), (0, -1)]:
        with pytest.raises(IndexError):
            dataset.tokens(start, count)
    with pytest.raises(IndexError):
        dataset[2]


def test_a_pickled_dataset_holds_no_tokens(write_dataset):
    dataset = IndexedDataset(write_dataset("a", [100_000]))
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data)[0], dataset[0])


def test_a_failed_write_leaves_the_old_files_and_nothing_else(write_dataset, tmp_path):
    prefix = write_dataset("a", [3, 2])
    before = read_all(prefix)
    with pytest.raises(RuntimeError, match="stop"), IndexedDatasetWriter(prefix, np.dtype("<i4")) as writer:
        writer.add_document(np.arange(9))
        raise RuntimeError("stop")
    assert read_all(prefix) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.crc", "a.idx"]


def test_missing_foreign_and_cut_files_are_named(write_dataset, tmp_path):
    with pytest.raises(UserError, match="no dataset at .*none.idx"):
        IndexedDataset(tmp_path / "none")
    prefix = write_dataset("a", [3, 2])
    idx, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    whole_idx, whole_bin = idx.read_bytes(), data.read_bytes()

    def expect(message: str) -> None:
        with pytest.raises(UserError, match=message):
            IndexedDataset(prefix)

    data.write_bytes(whole_bin[:-4])
    expect("has 16 bytes where its .idx says 20")
    data.unlink()
    expect("a.bin is missing")
    data.write_bytes(whole_bin)
    idx.write_bytes(whole_idx[:-1])
    expect("where its header says")
    idx.write_bytes(b"PK" + whole_idx[2:])
    expect("not a Megatron index")
    idx.write_bytes(whole_idx[:9] + b"\x02" + whole_idx[10:])
    expect("version 2")
    idx.write_bytes(whole_idx[:17] + b"\x63" + whole_idx[18:])
    expect("type code 99")
