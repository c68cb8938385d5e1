"""`megalm corpus classifier`: train, score and info on the command line, for people and as JSON; mistakes are one line."""

import io
import json
import sys

import pytest

from megalm import cli
from tests.corpus.classify.texts import labelled, write

SMALL = ("--bucket-bits", 12)


def run(capsys, *arguments) -> str:
    assert cli.main([str(argument) for argument in ("corpus", "classifier", *arguments)]) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    path = write(folder / "l.jsonl", labelled(80))
    assert (
        cli.main(["corpus", "classifier", "train", str(path), "-o", str(folder / "m"), "--bucket-bits", "12"])
        == 0
    )
    return folder / "m"


def test_train_prints_the_measures_and_as_json_all_that_is_stored(tmp_path, capsys):
    path = write(tmp_path / "l.jsonl", labelled(80))
    out = run(capsys, "train", path, "--output", tmp_path / "m", "--c", 1, "--c", 10, *SMALL)
    assert "documents   bad 40, good 40; 0 copies" in out
    assert "precision" in out.splitlines()[-1] and out.splitlines()[-1].startswith("held-out ")
    assert run(capsys, "info", tmp_path / "m") == out
    found = json.loads(run(capsys, "train", path, "-o", tmp_path / "m", "--overwrite", *SMALL, "--json"))
    assert found["training"]["held_out"]["f1"] > 0.9 and found["output"] == str(tmp_path / "m")
    described = json.loads(run(capsys, "info", tmp_path / "m", "--json"))
    assert {**described, "output": found["output"]} == {**found, "model": described["model"]}
    out = run(
        capsys, "train", write(path, labelled(90, ("bad", "good", "ugly"))), "-o", tmp_path / "3", *SMALL
    )
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["bad", "good", "ugly"]


def test_score_prints_a_line_a_document_or_writes_them_with_their_scores(model, tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", labelled(4, seed=5))
    lines = [line.split("\t") for line in run(capsys, "score", model, path).splitlines()]
    assert [(label, id) for _, label, id in lines] == [
        ("bad", "d0"),
        ("good", "d1"),
        ("bad", "d2"),
        ("good", "d3"),
    ]
    found = json.loads(run(capsys, "score", model, path, "--json"))
    assert found["labels"] == {"bad": 2, "good": 2} and found["documents"] == 4
    assert [f"{entry['score']:.6f}" for entry in found["scores"]] == [value for value, *_ in lines]
    records = [labelled(1)[0] | {"metadata": {"a": 1}}, *labelled(2, seed=1)]
    out = run(
        capsys,
        "score",
        model,
        write(path, records),
        "-o",
        tmp_path / "o.jsonl",
        "--score-key",
        "q",
        "--label",
        "bad",
    )
    assert out == f"{tmp_path / 'o.jsonl'}  3 documents: bad 2, good 1\n"
    written = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert written[0]["metadata"]["a"] == 1 and written[0]["metadata"]["q"] > 0.5 > written[2]["q"]
    assert [record["text"] for record in written] == [record["text"] for record in records]


@pytest.mark.parametrize("lines", [True, False], ids=["JSON lines", "a text"])
def test_standard_input_is_json_lines_or_one_text(model, monkeypatch, capsys, lines):
    texts = [record["text"] for record in labelled(2)]
    data = "\n\n".join(json.dumps({"text": text}) for text in texts) if lines else "\n".join(texts)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
    found = json.loads(run(capsys, "score", model, "-", "--json"))
    assert [entry["id"] for entry in found["scores"]] == (["-:1", "-:3"] if lines else ["-"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "l.jsonl", "-o", "m"], "m exists; choose another output"),
        (["train", "none.jsonl", "-o", "n"], "none.jsonl does not exist"),
        (["train", "l.jsonl", "-o", "n", "--c", -1], "`c.0` = -1.0: Input should be greater than 0"),
        (["train", "l.jsonl", "-o", "n", "--bucket-bits", 40], "`bucket_bits` = 40"),
        (
            ["train", "l.jsonl", "-o", "n", "--positive", "x"],
            "no document has the label 'x' (found: bad, good)",
        ),
        (["score", "l.jsonl", "l.jsonl"], "l.jsonl is no classifier"),
        (["score", "none", "l.jsonl"], "classifier none does not exist"),
        (["score", "m", "l.jsonl", "--label", "x"], "no label 'x'; choose one of bad, good"),
        (["score", "m", "-"], "standard input line 2 is not JSON"),
        (["score", "m", "-", "--text-key", "b"], "standard input line 1 has no text under 'b'"),
        (["score", "m", "l.jsonl", "--sample-by", "page"], "sample_by is 'page'"),
    ],
)
def test_mistakes_are_one_line(model, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\n{broken\n')))
    assert cli.main([str(argument) for argument in ("corpus", "classifier", *arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
