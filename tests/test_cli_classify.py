"""The commands on labelled data: what they print, and one line and code 2 for a user's mistake."""

import json
from pathlib import Path

import pytest

from megalm import cli
from tests.bert_text import write_bert_data
from tests.test_cli import mistake


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    write_bert_data(tmp_path)
    rows = [f"{'ham' if n % 3 else 'spam'}\tthe sea of {n} woods\n" for n in range(30)]
    (tmp_path / "rows.tsv").write_text("".join([*rows, rows[0], "ham\t\n"]))
    return tmp_path


def build(directory: Path, *more: str) -> list[str]:
    columns = ["--text-key", "2", "--label-key", "1"]
    paths = ["--tokenizer", str(directory / "vocab.txt"), "-o", str(directory / "labelled")]
    return ["dataset", "build-labelled", str(directory / "rows.tsv"), *paths, *columns, *more]


def test_building_tells_counts_and_what_was_left_out(labelled: Path, capsys) -> None:
    assert cli.main(build(labelled, "--splits", "80,20")) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{labelled}/labelled_train  24 documents  (ham 16, spam 8)",
        f"{labelled}/labelled_valid  6 documents  (ham 4, spam 2)",
        f"left out, empty text: 1 ({labelled}/rows.tsv line 32)",
        f"left out, copy of another row: 1 ({labelled}/rows.tsv line 31)",
    ]
    assert cli.main(build(labelled, "--labels", "spam,ham", "--overwrite", "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["splits"]["train"]["labels"] == ["spam", "ham"]
    assert result["left_out"]["copy of another row"]["rows"] == 1


def test_mistakes_are_one_line(labelled: Path, capsys) -> None:
    assert "rows.tsv has no column '3'" in mistake(capsys, *build(labelled, "--text-key", "3"))
    assert "of no known kind" in mistake(
        capsys,
        "dataset",
        "build-labelled",
        "x.parquet",
        "--tokenizer",
        str(labelled / "vocab.txt"),
        "-o",
        "y",
    )
    assert "--format is 'xml'" in mistake(capsys, "classify", "run", "--text", "x", "--format", "xml")
    assert "no such file" in mistake(capsys, "classify", "run", str(labelled / "none.txt"))
    empty = labelled / "empty.txt"
    empty.write_text("\n")
    assert "no text given" in mistake(capsys, "classify", "run", str(empty))
    assert "--dtype is 'fp8'" in mistake(capsys, "classify", "run", "--text", "x", "--dtype", "fp8")
    best = ("--step", "best", "--batch-size", "0")  # which checkpoint may be named so; how many texts may not
    assert "--batch-size is 0" in mistake(capsys, "classify", "run", "--text", "x", *best)
    assert "cannot share standard input" in mistake(capsys, "classify", "run", "--nproc", "2")
