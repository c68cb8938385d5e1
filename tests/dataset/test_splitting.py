"""Splitting: by text the very files that a build makes, otherwise consecutive parts, with all that lies beside them."""

import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, IndexedDatasetWriter, build_dataset, merge, split, verify
from megalm.dataset.origins import OriginColumns
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.tokenizer.test_bpe import make_texts, write_jsonl

PARTS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer `t`, and of the same texts `whole` (one part) and `d` (three)."""
    folder: Path = tmp_path_factory.mktemp("built")
    source = write_jsonl(folder / "a.jsonl", [*make_texts(300), "twice", "twice", "é\u2028 \U0001f600"])
    train_bpe([source], 400, folder / "t")
    build_dataset([source], folder / "t", folder / "whole", workers=1, splits="1", seed=7)
    build_dataset([source], folder / "t", folder / "d", workers=1, splits="70,20,10", seed=7)
    return folder


def sequences(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_by_text_the_files_are_those_that_a_build_makes(built, tmp_path):
    tokenizer = load_tokenizer(built / "t")
    records = split(built / "whole_train", tmp_path / "s", shares="70,20,10", tokenizer=tokenizer)
    for part in PARTS:
        for suffix in ("bin", "idx", "crc"):
            assert (tmp_path / f"s_{part}.{suffix}").read_bytes() == (
                built / f"d_{part}.{suffix}"
            ).read_bytes()
        assert verify(tmp_path / f"s_{part}")["verified"]
        assert records[part] == json.loads((tmp_path / f"s_{part}.json").read_text("utf-8"))
        assert records[part]["split_from"]["by_text"] is True
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize(
    ("how", "sizes"),
    [
        ({"shares": "1,1,2"}, [75, 76, 152]),
        ({"shares": "98,1,1"}, [296, 3, 4]),
        ({"shares": "1"}, [303]),
        ({"documents": [3]}, [3, 300]),
        ({"documents": [100, 200]}, [100, 200, 3]),
        ({"documents": [0, 303]}, [0, 303]),
    ],
)
def test_consecutive_parts_joined_are_the_whole(built, tmp_path, monkeypatch, how, sizes, block):
    monkeypatch.setattr("megalm.dataset.indexed.BLOCK", block)
    records = split(built / "whole_train", tmp_path / "s", **how)
    found = dict(zip(PARTS, sizes, strict=False))
    assert {name: record["documents"] for name, record in records.items()} == {
        name: size for name, size in found.items() if size
    }
    parts = [tmp_path / f"s_{name}" for name in PARTS if name in records]
    assert all(verify(part)["verified"] for part in parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"s_{name}.{suffix}" for name in records for suffix in ("bin", "crc", "idx", "json")
    )
    merge(parts, tmp_path / "m")
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"m.{suffix}").read_bytes() == (built / f"whole_train.{suffix}").read_bytes()


def write_all(prefix: Path, lengths: list[int], inputs: list[str], masked: bool = True) -> None:
    """Documents of two sequences each, with marks, origins and names."""
    random = np.random.default_rng(len(lengths))
    with IndexedDatasetWriter(prefix, np.dtype("<u2"), masked=masked, inputs=inputs) as writer:
        for number, length in enumerate(lengths):
            name = f"{prefix.name}-{number}é".encode()
            origins = OriginColumns(
                np.array([10**10 + number]),
                np.array([number % len(inputs)], np.int32),
                np.array([len(name)]),
                np.frombuffer(name, np.uint8),
            )
            writer.add_documents(
                np.arange(length) + 100 * number,
                np.array([length // 2, length - length // 2]),
                np.array([2]),
                random.integers(0, 2, length).astype(np.uint8) if masked else None,
                origins,
            )


def described(prefix: Path) -> list[tuple]:
    """Of each document its sequences, marks and origin."""
    dataset = IndexedDataset(prefix)
    starts = dataset.document_starts(np.arange(dataset.num_documents + 1))
    return [
        (
            [dataset[s].tolist() for s in range(*dataset.document_indices[number : number + 2].tolist())],
            dataset.loss_mask.read(int(start), int(stop - start)).tolist(),
            dataset.origins.origin(number),
        )
        for number, (start, stop) in enumerate(itertools.pairwise(starts))
    ]


@pytest.mark.parametrize("block", [1, 9, 1 << 20])
def test_masks_origins_and_sequences_go_along(tmp_path, monkeypatch, block):
    monkeypatch.setattr("megalm.dataset.indexed.BLOCK", block)
    write_all(tmp_path / "a", [5, 0, 12, 3, 8], ["x.jsonl", "y.jsonl"])
    write_all(tmp_path / "b", [4, 4, 9], ["z.jsonl"])
    expected = described(tmp_path / "a") + described(tmp_path / "b")
    assert expected[1][2] == ("y.jsonl", 10**10 + 1, "a-1é")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    assert described(tmp_path / "m") == expected
    split(tmp_path / "m", tmp_path / "s", documents=[3, 4])
    assert described(tmp_path / "s_train") == expected[:3]
    assert described(tmp_path / "s_valid") == expected[3:7]
    assert described(tmp_path / "s_test") == expected[7:]


def test_parts_without_mask_or_origins_count_wholly_and_come_from_themselves(tmp_path, write_dataset):
    write_all(tmp_path / "a", [5, 7], ["x.jsonl"])
    with IndexedDatasetWriter(tmp_path / "b", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(3))
        writer.add_document(np.arange(2))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    *_, last = described(tmp_path / "m")
    assert last == ([[0, 1]], [1, 1], (str(tmp_path / "b.bin"), 6, ""))


def test_a_split_overwrites_all_or_nothing(built, tmp_path):
    tokenizer = load_tokenizer(built / "t")
    split(built / "whole_train", tmp_path / "s", shares="1,1,1")
    with pytest.raises(UserError, match="s_train.idx exists"):
        split(built / "whole_train", tmp_path / "s", shares="1")
    split(built / "whole_train", tmp_path / "s", shares="1,1", tokenizer=tokenizer, overwrite=True)
    assert not (tmp_path / "s_test.bin").exists()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    child = os.fork()
    if child == 0:
        try:
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            split(built / "whole_train", tmp_path / "s", shares="1", overwrite=True)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    split(built / "whole_train", tmp_path / "s", shares="1", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "s_train.bin",
        "s_train.crc",
        "s_train.idx",
        "s_train.json",
    ]


def test_files_of_other_programs_are_split_without_a_sidecar(write_dataset, tmp_path):
    records = split(write_dataset("a", [3, 4, 5]), tmp_path / "s", documents=[1])
    assert records["valid"]["tokens"] == 9
    assert sequences(tmp_path / "s_train") == [[0, 1, 2]]
    assert not (tmp_path / "s_train.json").exists()


def test_wrong_ways_to_split_are_named(built, tmp_path):
    whole = built / "whole_train"
    for how in ({}, {"shares": "1", "documents": [1]}):
        with pytest.raises(UserError, match="give either shares"):
            split(whole, tmp_path / "s", **how)
    for documents in ([], [1, 2, 3], [304], [-1, 5], [300, 4]):
        with pytest.raises(UserError, match="come to at most the 303 documents"):
            split(whole, tmp_path / "s", documents=documents)
    with pytest.raises(UserError, match="splits is '1,x'"):
        split(whole, tmp_path / "s", shares="1,x")
    with pytest.raises(UserError, match="is the dataset that is split"):
        split(whole, built / "whole", shares="1", overwrite=True)
    train_bpe([built / "a.jsonl"], 300, tmp_path / "other")
    with pytest.raises(UserError, match="made with another tokenizer"):
        split(whole, tmp_path / "s", shares="1", tokenizer=load_tokenizer(tmp_path / "other"))


def test_origins_that_do_not_fit_are_named(tmp_path):
    write_all(tmp_path / "a", [5, 7, 9], ["x.jsonl"])
    path = tmp_path / "a.origins"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:20], b"?" + whole[1:], whole + b" "):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.origins (is no file of origins|has \d+ bytes for)"):
            IndexedDataset(tmp_path / "a")
    write_all(tmp_path / "b", [5, 7], ["x.jsonl"])
    path.write_bytes((tmp_path / "b.origins").read_bytes())
    with pytest.raises(UserError, match="for 2 documents .* the dataset has 3"):
        IndexedDataset(tmp_path / "a")
