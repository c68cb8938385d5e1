"""The second pass: pieces written in any order, by any process, are the files that one stream of documents in order gives."""

import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import Extras, IndexedDatasetWriter, build_dataset
from megalm.dataset import build as module
from megalm.dataset.indexed import HEADER
from megalm.dataset.origins import OriginColumns
from megalm.dataset.placing import Layout, PlacedWriter
from megalm.dataset.runs import ROW, Documents, Place
from megalm.splits import SPLITS, split_limits
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.documents import expand_inputs, read_documents
from tests.tokenizer.test_bpe import make_texts, write_jsonl

ALL = Extras(id_key="id", prompt_key="prompt")
KINDS = ("bin", "idx", "crc", "mask", "origins")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and two files of documents with names and prompts, copies and empty texts among them."""
    folder: Path = tmp_path_factory.mktemp("second")
    train_bpe([write_jsonl(folder / "train.jsonl", make_texts(100))], 400, folder / "t")
    (folder / "in").mkdir()
    texts = [*make_texts(160, seed=3), *["the same words"] * 9, "", "x"]
    lines = [
        json.dumps({"id": f"né-{n}", "text": t, "prompt": f"ask {n % 40}?"}) for n, t in enumerate(texts)
    ]
    for name, part in (("a", lines[::2]), ("b", lines[1::2])):
        (folder / "in" / f"{name}.jsonl").write_text("\n".join(part) + "\n", "utf-8")
    return folder


@pytest.fixture(autouse=True)
def pieces_of_several_buckets(small_pieces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megalm.dataset.shuffle.BUCKET_BYTES", 700)
    monkeypatch.setattr("megalm.dataset.shuffle.MOST_PIECES", 12)


def write_as_one_stream(folder: Path, prefix: Path, splits: str, seed: int) -> None:
    """What a build must give, from its definition: every document's key, a sort, and one writer a split."""
    tokenizer = load_tokenizer(folder / "t")
    files = expand_inputs([folder / "in"])
    rows = []
    for number, path in enumerate(files):
        for document in read_documents(path):
            if not document.text:
                continue
            assert document.record is not None
            asked, answer = (tokenizer.encode(text) for text in (document.record["prompt"], document.text))
            split = next(
                i for i, limit in enumerate(split_limits(splits)) if hash64(document.record["prompt"]) < limit
            )
            place = hash64(repr((seed, number, document.offset))) >> 2
            name = document.record["id"].encode()
            counts = [0] * len(asked) + [1] * (len(answer) + 1)
            rows.append(
                (split, place, [*asked, *answer, tokenizer.eod_id], counts, document.offset, number, name)
            )
    rows.sort(key=lambda row: row[:2])
    for split, title in enumerate(SPLITS):
        inputs = [str(path) for path in files]
        with IndexedDatasetWriter(Path(f"{prefix}_{title}"), np.dtype("<u2"), True, inputs) as writer:
            for at, _, ids, counts, offset, number, name in rows:
                if at == split:
                    origins = OriginColumns(
                        np.array([offset]),
                        np.array([number]),
                        np.array([len(name)]),
                        np.frombuffer(name, np.uint8),
                    )
                    writer.add_documents(
                        np.array(ids),
                        np.array([len(ids)]),
                        counts=np.array(counts, np.uint8),
                        origins=origins,
                    )


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bytes_of(prefix: Path) -> dict[str, bytes]:
    paths = {f"{split}.{kind}": Path(f"{prefix}_{split}.{kind}") for split in SPLITS for kind in KINDS}
    return {name: path.read_bytes() for name, path in paths.items()}


@pytest.mark.parametrize("workers", [1, 2])
def test_pieces_give_the_bytes_of_one_stream_in_order(folder, tmp_path, monkeypatch, workers):
    write_as_one_stream(folder, tmp_path / "stream", "70,20,10", 5)
    run, sizes = module.run_tasks, []

    def in_another_order(tasks, *arguments):
        sizes.append(len(tasks))
        run(random.Random(1).sample(tasks, len(tasks)), *arguments)

    monkeypatch.setattr(module, "run_tasks", in_another_order)
    records = build_dataset(
        [folder / "in"], folder / "t", tmp_path / "d", workers=workers, splits="70,20,10", seed=5, extras=ALL
    )
    assert bytes_of(tmp_path / "d") == bytes_of(tmp_path / "stream")
    assert sizes[1] > 6, "several pieces"
    assert records["train"]["sequences"] == records["train"]["documents"] > 80


def test_a_piece_that_is_written_again_changes_nothing(folder, tmp_path, monkeypatch):
    run = module.run_tasks

    def twice(tasks, *arguments):
        run(tasks, *arguments)
        run(tasks[::-1], *arguments)

    for name, runner in (("once", run), ("twice", twice)):
        monkeypatch.setattr(module, "run_tasks", runner)
        build_dataset([folder / "in"], folder / "t", tmp_path / name, workers=1, splits="7,2,1", extras=ALL)
    assert bytes_of(tmp_path / "once") == bytes_of(tmp_path / "twice")


def documents(counts: list[list[int]]) -> Documents:
    """Documents of as many tokens as they have marks."""
    rows = np.zeros(len(counts), ROW)
    rows["tokens"] = [len(one) for one in counts]
    marks = np.array([mark for one in counts for mark in one], np.uint8)
    return Documents(rows, np.arange(len(marks), dtype="<u2"), marks, np.empty(0, np.uint8))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_writers_that_share_bytes_of_the_mask_lose_no_bit(tmp_path, cut):
    """Documents of 1 to 3 tokens, a writer for each `cut` of them: some bytes of the mask are several writers'."""
    rng = random.Random(cut)
    marks = [[rng.randrange(2) for _ in range(rng.randrange(1, 4))] for _ in range(40)]
    whole = documents(marks)
    with IndexedDatasetWriter(tmp_path / "stream", np.dtype("<u2"), masked=True) as stream:
        stream.add_documents(whole.tokens, whole.rows["tokens"], counts=whole.counts)
    layout = Layout(tmp_path / "d", np.dtype("<u2"), Place(40, len(whole.tokens), 0), True, None)
    layout.allocate()
    edges, place = [], Place(0, 0, 0)
    for begin in range(0, 40, cut):
        with PlacedWriter(layout, place) as writer:
            for one in range(begin, min(begin + cut, 40)):
                writer.add(documents([marks[one]]))
        edges, place = edges + writer.edges, writer.place
    layout.write_edges(edges)
    assert (tmp_path / "d.mask").read_bytes() == (tmp_path / "stream.mask").read_bytes()


def test_a_writer_leaves_all_that_it_wrote_on_disk(tmp_path, monkeypatch):
    layout = Layout(tmp_path / "d", np.dtype("<u2"), Place(2, 4, 0), True, ["a"])
    layout.allocate()
    synced = set()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.add(os.fstat(file).st_ino)))
    with PlacedWriter(layout, Place(0, 0, 0)) as writer:
        writer.add(documents([[1, 1], [0, 1]]))
        assert not synced
    assert synced == {path.stat().st_ino for path in layout.paths().values()} and len(synced) == 5


def test_places_beyond_32_bits(tmp_path):
    tokens = 5 << 31
    layout = Layout(tmp_path / "d", np.dtype("<u2"), Place(2, tokens, 0), False, None)
    layout.allocate()
    with PlacedWriter(layout, Place(1, tokens - 3, 0)) as writer:
        writer.add(documents([[1, 1, 1]]))
    with open(tmp_path / "d.bin", "rb") as file:
        file.seek(2 * (tokens - 3))
        assert np.frombuffer(file.read(), "<u2").tolist() == [0, 1, 2]
    index = (tmp_path / "d.idx").read_bytes()
    assert np.frombuffer(index, "<i8", 2, HEADER.size + 8).tolist() == [0, 2 * (tokens - 3)]
