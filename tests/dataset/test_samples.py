"""Samples as text: the pieces that are told are the tokens that training reads."""

import json
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, TokenStream, build_dataset
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.samples import open_for_show, show_samples, tokenizer_of
from megalm.dataset.sidecar import KIND, write_sidecar
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe
from tests.tokenizer.test_bpe import make_texts, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("samples")
    for name in ("a", "b"):
        source = write_jsonl(folder / f"{name}.jsonl", make_texts(60, seed=ord(name)))
        if name == "a":
            train_bpe([source], 400, folder / "t")
        build_dataset([source], folder / "t", folder / name, workers=1, splits="1")
    return folder


@pytest.mark.parametrize("kind", ["windows", "documents apart", "packs"])
def test_pieces_joined_are_the_sample(folder, kind):
    sources = [(folder / "a_train", 0.6), (folder / "b_train", 0.4)]
    streams = {
        "windows": lambda: TokenStream(sources, 48, seed=1),
        "documents apart": lambda: TokenStream(sources, 48, seed=1, reset_at_document_end=True),
        "packs": lambda: PackStream(sources, 48, seed=1),
    }
    stream, tokenizer = streams[kind](), load_tokenizer(folder / "t")
    told = show_samples(stream, tokenizer, 3, 40)
    assert [entry["sample"] for entry in told] == list(range(3, 43))
    assert len({entry["source"] for entry in told}) == 2
    for entry in told:
        batch = stream.batch(np.array([entry["sample"]]))
        ids = batch.tokens_BS[0, : entry["tokens"]].tolist()
        assert "".join(piece["text"] for piece in entry["pieces"]) == tokenizer.decode(ids)
        assert entry["counted"] == batch.loss_mask_BS.sum()
        if kind != "windows":
            lengths = [piece["tokens"] for piece in entry["pieces"]]
            assert np.bincount(batch.segments_BS[0])[: len(lengths)].tolist() == lengths
        for piece in entry["pieces"]:
            dataset = IndexedDataset(entry["source"])
            document = dataset[piece["document"]][piece["first"] : piece["first"] + piece["tokens"]]
            assert tokenizer.decode(document.tolist()) == piece["text"]


def test_a_window_around_the_end_of_the_file_is_told_in_two_parts(write_dataset):
    stream = TokenStream([(write_dataset("a", [50, 0, 30, 20]), 1)], 40, seed=1)
    for sample in range(40):
        pieces = stream.pieces(sample)
        assert all(piece.tokens for piece in pieces)
        told = np.concatenate([piece.ids() for piece in pieces])
        assert np.array_equal(told, stream.batch(np.array([sample])).tokens_BS[0])


def test_a_runs_configuration_or_a_dataset_alone_is_opened_with_its_tokenizer(folder, tmp_path):
    data = {"train": [{"path": str(folder / "a_train")}], "valid": [{"path": str(folder / "b_train")}]}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"data": data, "batch": {"seq_length": 32}, "run": {"seed": 5}}))
    stream, tokenizer = open_for_show(path, ["batch.seq_length=24"], None)
    assert tokenizer.hash == load_tokenizer(folder / "t").hash
    expected = TokenStream([(folder / "a_train", 1.0)], 24, seed=5).batch(np.arange(4)).tokens_BS
    assert np.array_equal(stream.batch(np.arange(4)).tokens_BS, expected)
    valid, _ = open_for_show(path, [], None, valid=True)
    assert valid.datasets[0].prefix == folder / "b_train"
    alone, _ = open_for_show(folder / "a_train", ["data.packing=drop", "batch.seq_length=4000"], folder / "t")
    assert isinstance(alone, PackStream) and alone.seq_length == 4000
    for way in ("drop", "cut"):
        alone, _ = open_for_show(folder / "a_train", [f"data.packing={way}", "batch.seq_length=20"], None)
        assert (alone.packs[0].dropped > 0) == (way == "drop")


def test_what_cannot_be_shown_is_named(folder, tmp_path, write_dataset):
    with pytest.raises(UserError, match="does not record its tokenizer: name it with --tokenizer"):
        tokenizer_of(write_dataset("a", [3]), None)
    moved = write_dataset("m", [3])
    write_sidecar(moved, {"kind": KIND, "tokenizer": str(tmp_path / "gone"), "tokenizer_hash": "abc"})
    with pytest.raises(
        UserError, match="tokenizer that .*m records does not open .*; name it with --tokenizer"
    ):
        tokenizer_of(moved, None)
    (tmp_path / "run.yaml").write_text("{}")
    with pytest.raises(UserError, match="names no data.valid"):
        open_for_show(tmp_path / "run.yaml", [], None, valid=True)
    with pytest.raises(UserError, match="`bert` are not shown"):
        open_for_show(folder / "a_train", ["model.preset=bert-tiny", "batch.seq_length=64"], None)
    train_bpe([folder / "a.jsonl"], 300, tmp_path / "other")
    stream, _ = open_for_show(folder / "a_train", ["batch.seq_length=24"], None)
    with pytest.raises(UserError, match="made with another tokenizer"):
        show_samples(stream, load_tokenizer(tmp_path / "other"))
