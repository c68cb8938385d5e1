"""Joining, checking and showing datasets: nothing lost, and each kind of damage named."""

from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, IndexedDatasetWriter, info, merge, show, verify
from megalm.dataset.sidecar import write_sidecar
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe


def record(writer: IndexedDatasetWriter, **changes) -> dict:
    content = {
        "tokenizer": "t",
        "tokenizer_hash": "abc",
        "vocab_size": 1000,
        "eod_id": 0,
        "append_eod": False,
        "dtype": writer.dtype.name,
        "documents": writer.num_documents,
        "sequences": writer.num_sequences,
        "tokens": writer.num_tokens,
        "bin_sha256": writer.sha256,
    }
    return {**content, **changes}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three documents of five sequences, with a sidecar."""
    with IndexedDatasetWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        writer.add_documents(np.arange(100, 130), np.array([10, 5, 0, 7, 8]), np.array([2, 3, 5]))
    write_sidecar(tmp_path / "a", record(writer))
    return tmp_path / "a"


def sequences(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset[i].tolist() for i in range(len(dataset))]


@pytest.mark.parametrize("block", [1, 4, 13, 1 << 20])
def test_merge_appends_documents_and_their_sequences(dataset, tmp_path, monkeypatch, block):
    monkeypatch.setattr("megalm.dataset.copying.BLOCK", block)
    with IndexedDatasetWriter(tmp_path / "b", np.dtype("<u2")) as writer:
        writer.add_documents(np.arange(6), np.array([2, 4]), np.array([0, 1, 1, 2]))
    counts = merge([dataset, tmp_path / "b", dataset], tmp_path / "m")
    assert counts["documents"] == 10 and counts["tokens"] == 66
    assert sequences(tmp_path / "m") == [*sequences(dataset), [0, 1], [2, 3, 4, 5], *sequences(dataset)]
    assert IndexedDataset(tmp_path / "m").document_indices.tolist() == [0, 2, 3, 5, 5, 6, 6, 7, 9, 10, 12]
    assert not Path(f"{tmp_path / 'm'}.json").exists(), "a part without a record leaves the whole without"


def test_merged_sidecar_is_true(dataset, tmp_path):
    merge([dataset, dataset], tmp_path / "m")
    report = verify(tmp_path / "m")
    assert report["compared"] == ["bin_sha256", "documents", "dtype", "sequences", "tokens"]
    assert report["sidecar"]["tokenizer_hash"] == "abc"


def test_merge_refuses_unlike_parts_and_existing_outputs(dataset, write_dataset, tmp_path):
    with pytest.raises(UserError, match="holds int32"):
        merge([dataset, write_dataset("b", [3])], tmp_path / "m")
    with IndexedDatasetWriter(tmp_path / "c", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(3))
    write_sidecar(tmp_path / "c", record(writer, tokenizer_hash="xyz"))
    with pytest.raises(UserError, match="c has tokenizer_hash xyz, .*a has abc"):
        merge([dataset, tmp_path / "c"], tmp_path / "m")
    with pytest.raises(UserError, match="c.idx exists"):
        merge([dataset], tmp_path / "c")
    with pytest.raises(UserError, match="is one of the inputs"):
        merge([dataset], tmp_path / "sub" / ".." / "a", overwrite=True)
    with pytest.raises(UserError, match="nothing to merge"):
        merge([], tmp_path / "m")
    assert merge([dataset], tmp_path / "c", overwrite=True)["tokens"] == 30


def test_an_overwritten_sidecar_does_not_stay(dataset, write_dataset):
    merge([write_dataset("b", [3])], dataset, overwrite=True)
    assert info(dataset)["sidecar"] is None


def test_info_counts(dataset):
    found = info(dataset)
    assert (found["documents"], found["sequences"], found["tokens"], found["dtype"]) == (3, 5, 30, "uint16")
    assert found["bin_bytes"] == 60 and found["sidecar"]["vocab_size"] == 1000


def test_verify_passes_whole_files_with_and_without_sidecar(dataset, write_dataset):
    assert verify(dataset)["largest_id"] == 129
    assert verify(write_dataset("b", [3, 0, 4]))["compared"] == []


def damage(path: Path, offset: int, value: int, kind: str) -> None:
    data = bytearray(path.read_bytes())
    new = np.array([value], kind).tobytes()
    data[offset : offset + len(new)] = new
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("suffix", "offset", "value", "kind", "message"),
    [
        (".idx", 34 + 4, -5, "<i4", "sequence 1 of .* has length -5"),
        (".idx", 34 + 4, 6, "<i4", "sequence 2 of .* begins at byte 30"),
        (".idx", 34 + 20 + 8, 22, "<i8", "sequence 1 of .* begins at byte 22"),
        (".idx", 34 + 20 + 40 + 8, 9, "<i8", "document borders of .* go back"),
        (".idx", 34 + 20 + 40, 1, "<i8", "run from 1 to 5"),
        (".bin", 20, 1000, "<u2", "token 10 of .* is 1000, outside the vocabulary of 1000"),
        (".bin", 20, 111, "<u2", "has bin_sha256"),
    ],
)
@pytest.mark.parametrize("block", [2, 1 << 20])
def test_verify_names_the_damage(dataset, monkeypatch, suffix, offset, value, kind, message, block):
    monkeypatch.setattr("megalm.dataset.inspect.BLOCK", block)
    damage(Path(f"{dataset}{suffix}"), offset, value, kind)
    with pytest.raises(UserError, match=message):
        verify(dataset)


def test_verify_compares_counts_and_ends_with_the_sidecar(dataset):
    sidecar = info(dataset)["sidecar"]
    write_sidecar(dataset, {**sidecar, "documents": 4})
    with pytest.raises(UserError, match="has documents 3, its sidecar says 4"):
        verify(dataset)
    write_sidecar(dataset, {**sidecar, "append_eod": True})
    with pytest.raises(UserError, match="document 0 of .* does not end with token 0"):
        verify(dataset)


def test_show_gives_texts_of_the_right_tokenizer(tmp_path):
    (tmp_path / "a.txt").write_text("some words and some more words\n" * 10)
    tokenizer = train_bpe([tmp_path / "a.txt"], 270, tmp_path / "t")
    with IndexedDatasetWriter(tmp_path / "d", np.dtype("<u2")) as writer:
        for text in ("first", "second one", "third"):
            writer.add_document(np.array(tokenizer.encode(text)))
    assert [entry["text"] for entry in show(tmp_path / "d", tokenizer, first=1, count=9)] == [
        "second one",
        "third",
    ]
    with pytest.raises(UserError, match="document 3 of .* has 3"):
        show(tmp_path / "d", tokenizer, first=3)
    write_sidecar(tmp_path / "d", record(writer))
    with pytest.raises(UserError, match="made with another tokenizer"):
        show(tmp_path / "d", load_tokenizer(tmp_path / "t"))
