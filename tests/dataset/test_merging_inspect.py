"""Joining, checking and showing datasets: nothing lost, and each kind of damage named."""

from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, IndexedDatasetWriter, info, merge, show, split, verify
from megalm.dataset.origins import OriginColumns
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe


def record(writer: IndexedDatasetWriter, **changes) -> dict:
    content = {
        "kind": KIND,
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
        **writer.side_digests,
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
    monkeypatch.setattr("megalm.dataset.indexed.BLOCK", block)
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
    assert report["compared"] == [
        "bin_sha256",
        "crc",
        "documents",
        "dtype",
        "idx_sha256",
        "sequences",
        "tokens",
    ]
    assert report["sidecar"]["tokenizer_hash"] == "abc"
    tokens = {"prefix": 5, "middle": 6, "suffix": 7}
    with IndexedDatasetWriter(tmp_path / "b", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(3))
    write_sidecar(tmp_path / "b", record(writer, fim_tokens=tokens))
    assert merge([dataset, tmp_path / "b"], tmp_path / "n")["fim_tokens"] == tokens


def test_merge_refuses_unlike_parts_and_existing_outputs(dataset, write_dataset, tmp_path):
    with pytest.raises(UserError, match="holds int32"):
        merge([dataset, write_dataset("b", [3])], tmp_path / "m")
    with IndexedDatasetWriter(tmp_path / "c", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(3))
    write_sidecar(tmp_path / "c", record(writer, tokenizer_hash="xyz"))
    with pytest.raises(UserError, match="c has tokenizer_hash xyz, .*a has abc"):
        merge([dataset, tmp_path / "c"], tmp_path / "m")
    write_sidecar(tmp_path / "c", record(writer, append_eod=True))
    with pytest.raises(UserError, match="c has append_eod True, .*a has False; build them alike"):
        merge([dataset, tmp_path / "c"], tmp_path / "m")
    with pytest.raises(UserError, match="c.idx exists"):
        merge([dataset], tmp_path / "c")
    with pytest.raises(UserError, match="is one of the inputs"):
        merge([dataset], tmp_path / "sub" / ".." / "a", overwrite=True)
    with pytest.raises(UserError, match="nothing to merge"):
        merge([], tmp_path / "m")
    assert merge([dataset], tmp_path / "c", overwrite=True)["tokens"] == 30


@pytest.mark.parametrize("content", ['{"text": "mine"}\n{"text": "too"}\n', "[1]", '{"text": "mine"}'])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_the_users_own_is_never_replaced_by_a_record(dataset, tmp_path, content, overwrite):
    """What is no record of a dataset may be the very text that is being indexed."""
    for name in ("m", "m_valid"):
        mine = tmp_path / f"{name}.json"
        mine.write_text(content)
        with pytest.raises(UserError, match=rf"{name}.json is no record of a dataset.*; move it away"):
            merge([dataset], tmp_path / "m", overwrite) if name == "m" else split(
                dataset, tmp_path / "m", "1,1", overwrite=overwrite
            )
        assert mine.read_text() == content
        mine.unlink()
    with pytest.raises(UserError, match="prefix '.' is a directory; add a name"):
        merge([dataset], ".", overwrite)


def test_an_overwritten_sidecar_does_not_stay(dataset, write_dataset):
    merge([write_dataset("b", [3])], dataset, overwrite=True)
    assert info(dataset)["sidecar"] is None


def test_info_counts(dataset):
    found = info(dataset)
    assert (found["documents"], found["sequences"], found["tokens"], found["dtype"]) == (3, 5, 30, "uint16")
    assert found["bin_bytes"] == 60 and found["sidecar"]["vocab_size"] == 1000


def test_verify_passes_whole_files_with_and_without_sidecar(dataset, write_dataset):
    assert verify(dataset)["largest_id"] == 129
    assert verify(write_dataset("b", [3, 0, 4]))["compared"] == ["crc"]


def damage(path: Path, offset: int, value: int, kind: str) -> None:
    data = bytearray(path.read_bytes())
    new = np.array([value], kind).tobytes()
    data[offset : offset + len(new)] = new
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("suffix", "offset", "value", "kind", "message"),
    [
        (".idx", 34 + 4, -5, "<i4", r"a.idx: sequence 1 \(document 0\) has length -5, expected 0 or more"),
        (".idx", 34 + 4, 6, "<i4", r"a.idx: sequence 2 \(document 1\) begins at byte 30 .* expected 32"),
        (".idx", 34 + 20, 2, "<i8", r"a.idx: sequence 0 begins at byte 2 of the .bin, expected 0"),
        (
            ".idx",
            34 + 20 + 8,
            22,
            "<i8",
            r"a.idx: sequence 1 \(document 0\) begins at byte 22 .* expected 20",
        ),
        (".idx", 34 + 20 + 40 + 8, 9, "<i8", "a.idx: document 2 begins at sequence 3, expected at least 9"),
        (".idx", 34 + 20 + 40 + 8, -9, "<i8", "a.idx: document 1 begins at sequence -9, expected at least 0"),
        (".idx", 34 + 20 + 40, 1, "<i8", "a.idx: document borders run from 1 to 5, expected 0 to 5"),
        (".idx", 34 + 20 + 40 + 24, 6, "<i8", "a.idx: document borders run from 0 to 6, expected 0 to 5"),
        (".idx", 34 + 20 + 40 + 24, 4, "<i8", "a.idx: document borders end at 4, expected 5"),
        (
            ".idx",
            34 + 20 + 32,
            -2,
            "<i8",
            "a.idx: .* (the last, ends at byte|begins at byte|where its .idx says)",
        ),
        (".idx", 34 + 20 + 40 + 8, 3, "<i8", "a.(bin: document 0 .* CRC-32|idx has SHA-256)"),
        (
            ".bin",
            20,
            1000,
            "<u2",
            r"a.bin: token 10 \(byte 20, document 0\) is 1000, expected an id below 1000",
        ),
        (
            ".bin",
            20,
            111,
            "<u2",
            r"a.bin: document 0 \(bytes 0 to 30\) has CRC-32 \w{8}, expected \w{8} by the .crc",
        ),
        (
            ".bin",
            30,
            1,
            "<u2",
            r"a.bin: document 1 \(bytes 30 to 30\)|document 2 \(bytes 30 to 60\) has CRC-32",
        ),
        (".crc", 16 + 8, 1, "<u4", r"a.bin: document 2 .* expected 00000001 by the .crc"),
        (".crc", 8, 4, "<u8", "a.crc has 28 bytes .* for 3 documents"),
    ],
)
@pytest.mark.parametrize("block", [2, 1 << 20])
def test_verify_names_the_damage(dataset, monkeypatch, suffix, offset, value, kind, message, block):
    monkeypatch.setattr("megalm.dataset.index_checks.PIECE", block)
    monkeypatch.setattr("megalm.dataset.indexed.BLOCK", block)
    damage(Path(f"{dataset}{suffix}"), offset, value, kind)
    with pytest.raises(UserError, match=message):
        verify(dataset)


def test_every_flipped_bit_is_found(dataset):
    """In a file with checksums and a sidecar no bit of .bin, .idx and .crc is free."""
    for suffix in (".bin", ".idx", ".crc"):
        path = Path(f"{dataset}{suffix}")
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            path.write_bytes(
                whole[: bit // 8] + bytes([whole[bit // 8] ^ (1 << bit % 8)]) + whole[bit // 8 + 1 :]
            )
            with pytest.raises(UserError, match=r"a\.(bin|idx|crc)|a has "):
                verify(dataset)
        path.write_bytes(whole)
    assert verify(dataset)["verified"]


def test_every_cut_is_found_when_files_are_opened(dataset):
    for suffix in (".bin", ".idx"):
        path = Path(f"{dataset}{suffix}")
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(UserError, match=rf"a\{suffix} (is cut short|is not a Megatron index)"):
                IndexedDataset(dataset)
        path.write_bytes(whole + b"\0")
        with pytest.raises(UserError, match=rf"a\{suffix} has \d+ bytes where"):
            IndexedDataset(dataset)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("suffix", "size", "message"),
    [
        (".bin", 59, r"has 59 bytes where its .idx says 60; document 2 of 3 is the first that is not whole"),
        (".bin", 29, r"document 0 of 3 is the first"),
        (
            ".idx",
            34 + 7,
            r"5 sequences and 3 documents\); the length of sequence 1 is the first entry missing",
        ),
        (
            ".idx",
            34 + 20 + 16,
            r"has 70 bytes where its header says 126 .*the place of sequence 2 is the first",
        ),
        (".idx", 34 + 20 + 40 + 31, r"the border of document 3 is the first entry missing"),
    ],
)
def test_cut_files_are_named_with_the_first_thing_missing(dataset, suffix, size, message):
    path = Path(f"{dataset}{suffix}")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=message):
        verify(dataset)


def test_a_large_index_is_checked_at_its_ends_alone_when_opened(dataset, monkeypatch):
    damage(Path(f"{dataset}.idx"), 34 + 20 + 40 + 8, 9, "<i8")
    with pytest.raises(UserError, match="document 2 begins"):
        IndexedDataset(dataset)
    monkeypatch.setattr("megalm.dataset.indexed.CHECKED_AT_ONCE", 4)
    assert IndexedDataset(dataset).num_documents == 3
    damage(Path(f"{dataset}.idx"), 34 + 20 + 40, 1, "<i8")
    with pytest.raises(UserError, match="run from 1"):
        IndexedDataset(dataset)


def test_masks_and_origins_are_verified_too(tmp_path):
    with IndexedDatasetWriter(tmp_path / "a", np.dtype("<u2"), masked=True, inputs=["x"]) as writer:
        columns = OriginColumns(np.zeros(1, int), np.zeros(1, int), np.zeros(1, int), np.zeros(0, np.uint8))
        writer.add_documents(np.arange(9), np.array([9]), counts=np.ones(9, np.uint8), origins=columns)
    write_sidecar(tmp_path / "a", record(writer, **writer.side_digests))
    assert {"mask_sha256", "origins_sha256"} <= set(verify(tmp_path / "a")["compared"])
    for suffix in (".mask", ".origins"):
        path = tmp_path / f"a{suffix}"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"a\{suffix}(:| has SHA-256).*(JSON|expected)"):
            verify(tmp_path / "a")
        path.unlink()
        with pytest.raises(UserError, match=rf"a\{suffix} is missing, which the sidecar names"):
            verify(tmp_path / "a")
        path.write_bytes(whole)


def test_verify_compares_counts_and_ends_with_the_sidecar(dataset):
    sidecar = info(dataset)["sidecar"]
    write_sidecar(dataset, {**sidecar, "documents": 4})
    with pytest.raises(UserError, match="has documents 3, its sidecar says 4"):
        verify(dataset)
    write_sidecar(dataset, {**sidecar, "append_eod": True})
    with pytest.raises(
        UserError, match=r"a.bin: document 0 \(bytes 0 to 30\) ends with 114, expected the end token 0"
    ):
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
