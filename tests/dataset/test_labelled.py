"""Labelled token files: bad rows and copies counted and left out, classes split alike, labels read back."""

import json
from collections import Counter
from pathlib import Path

import pytest

from megalm.dataset import IndexedDataset, merge, show, verify
from megalm.dataset.labelled import Columns, build_labelled, labelled_splits
from megalm.dataset.labels import labels_path, read_labels
from megalm.errors import UserError
from megalm.tokenizer import Tokenizer, load_tokenizer
from tests.bert_text import write_bert_data


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_data(tmp_path_factory.mktemp("text")) / "vocab.txt"


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return load_tokenizer(vocabulary)


def test_bad_rows_and_copies_are_left_out_counted_and_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.tsv"
    rows = [
        "ham\tthe sea",
        'spam\tWIN "now',
        "ham\tThe  Sea",  # a copy of line 1
        "\tno label",
        "ham\t  ",
        "egg\tunknown",
        "ham\ttwo minds",
        "spam\tTwo minds",
    ]
    file.write_text("\n".join(rows) + "\n")
    parts, left_out = labelled_splits([file], Columns("2", "1"), labels=["ham", "spam"], splits="1")
    assert {sample.texts[0]: sample.label for sample in parts[0]} == {"the sea": "ham", 'WIN "now': "spam"}
    assert left_out.to_json() == {
        "no label": {"rows": 1, "first": [f"{file} line 4"]},
        "empty text": {"rows": 1, "first": [f"{file} line 5"]},
        "unknown label 'egg'": {"rows": 1, "first": [f"{file} line 6"]},
        "copy of another row": {"rows": 1, "first": [f"{file} line 3"]},
        "copies with different labels": {"rows": 2, "first": [f"{file} line 7", f"{file} line 8"]},
    }


def test_every_class_has_its_share_in_every_split_and_no_text_is_in_two(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"text {n}", "label": n % 5 == 0} for n in range(100)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts, _ = labelled_splits([file], splits="60,20,20")
    assert [Counter(sample.label for sample in part) for part in parts] == [
        {"false": 48, "true": 12},
        {"false": 16, "true": 4},
        {"false": 16, "true": 4},
    ]
    assert len({sample.texts for part in parts for sample in part}) == 100
    # shares of a few are rounded to whole texts: 5.6 and 0.7 of seven
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in rows[1:5] + rows[6:9]))
    assert [len(part) for part in labelled_splits([few], splits="80,10,10")[0]] == [6, 0, 1]
    # not by the rows' order
    file.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    assert labelled_splits([file], splits="60,20,20")[0] == parts
    reordered, _ = labelled_splits([file], splits="60,20,20", seed=1)
    assert [set(part) for part in reordered] == [set(part) for part in parts] and reordered != parts


def test_token_files_hold_texts_pairs_and_labels(
    tmp_path: Path, vocabulary: Path, tokenizer: Tokenizer
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        'first,second,label\n"the sea, wide","a hand",b\nthe wood,the stone,a\n' + "a river,a sea,b\n"
    )
    prefix = tmp_path / "data"
    columns = Columns("first", "label", "second")
    result = build_labelled([file], vocabulary, prefix, columns, splits="1")
    assert list(result["splits"]) == ["train"]
    dataset = IndexedDataset(f"{prefix}_train")
    assert (dataset.num_documents, dataset.num_sequences) == (3, 6)
    found = {
        tuple(tokenizer.decode(dataset[2 * n + k].tolist()) for k in (0, 1)): label
        for n, label in enumerate(read_labels(dataset, ["b", "a"]))
    }
    expected = {("the sea, wide", "a hand"): 0, ("the wood", "the stone"): 1, ("a river", "a sea"): 0}
    assert found == {tuple(tokenizer.decode(tokenizer.encode(t)) for t in k): v for k, v in expected.items()}
    assert result["splits"]["train"]["label_counts"] == {"a": 1, "b": 2}
    labels = [entry["label"] for entry in show(f"{prefix}_train", tokenizer, count=3)]
    assert labels == [["b", "a"][number] for number in read_labels(dataset, ["b", "a"])]
    assert "labels_sha256" in verify(f"{prefix}_train")["compared"]

    with pytest.raises(UserError, match=r"labels that the classes a lack: 'b' \(2 documents\)"):
        read_labels(dataset, ["a"])
    with pytest.raises(UserError, match="exists; choose another prefix"):
        build_labelled([file], vocabulary, prefix, columns, splits="1")
    with pytest.raises(UserError, match="has labels, which are not copied"):
        merge([f"{prefix}_train"], tmp_path / "merged")
    path = labels_path(f"{prefix}_train")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="is not the labels of 3 documents"):
        read_labels(dataset, ["a", "b"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "message,label\nx,a\n", "has no column 'text' \\(found label, message\\)"),
        ("rows.csv", "text,label\nx,a,b\n", "line 2 has 3 fields where the first line names 2"),
        ("rows.jsonl", '{"text": "x", "label": ["a", "b"]}\n', "give one label a text"),
        ("rows.jsonl", "{\n", "line 1 is not JSON"),
        ("rows.csv", "text,label\n,a\n", "no row has a text and a label"),
        ("rows.dat", "x", "of no known kind"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        labelled_splits([tmp_path / name])
