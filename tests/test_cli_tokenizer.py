"""The command that trains tokenizers: its options reach the training, and mistakes are one line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megalm import cli
from megalm.cli_tokenizer import tokenizer_app
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.training import KINDS


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("Some words to learn, and 123 more words to learn\n" * 20)
    return path


def train(source: Path, out: Path, *options: str) -> dict:
    arguments = ["train", str(source), "-o", str(out), *options, "--json"]
    result = CliRunner().invoke(tokenizer_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_option_reaches_the_training(source, tmp_path):
    options = "--vocab-size 290 --pretokenizer gpt4-digits --normalizer nfd --normalizer lowercase --chat-tokens chatml"
    more = "--special-token <x> --min-count 20 --ties bytes --sample-bytes 100000 --workers 1 --max-words 100"
    told = train(source, tmp_path / "t", *options.split(), *more.split())
    tokenizer = load_tokenizer(tmp_path / "t")
    assert told == {
        "output": str(tmp_path / "t"),
        "vocab_size": tokenizer.vocab_size,
        "eod_id": 0,
        "hash": tokenizer.hash,
    }
    assert [*tokenizer.special_tokens] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<x>"]
    content = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    assert [step["type"] for step in content["normalizer"]["normalizers"]] == ["NFD", "Lowercase"]
    assert r"\p{N}|" in json.dumps(content["pre_tokenizer"]).replace("\\\\", "\\")
    # what occurs forty times (learn, to, words) is merged, nothing that is rarer than the least count
    assert content["model"]["merges"] and tokenizer.token_id("some") is not None
    fewer = train(source, tmp_path / "u", *options.split(), "--min-count", "21")
    assert fewer["vocab_size"] < told["vocab_size"]


def test_options_of_sentencepiece_reach_the_training(source, tmp_path):
    told = train(source, tmp_path / "t", "--kind", "unigram", "--vocab-size", "60", "--no-byte-fallback")
    assert told["vocab_size"] <= 60 and not load_tokenizer(tmp_path / "t").lossless
    rare = tmp_path / "b.txt"
    rare.write_text("abc abd\n" * 300 + "q\n")
    for coverage, covered in (("0.98", False), ("1", True)):
        options = ["--kind", "unigram", "--vocab-size", "270", "--character-coverage", coverage]
        train(rare, tmp_path / coverage, *options)
        assert (load_tokenizer(tmp_path / coverage).token_id("q") is not None) == covered


def test_bytes_are_trained_without_inputs_and_replaced_if_asked(tmp_path):
    arguments = ["train", "--kind", "byte", "-o", str(tmp_path / "t")]
    assert CliRunner().invoke(tokenizer_app, arguments).exit_code == 0
    assert CliRunner().invoke(tokenizer_app, arguments).exit_code != 0
    assert CliRunner().invoke(tokenizer_app, [*arguments, "--overwrite"]).exit_code == 0


def test_a_mistake_is_one_line_and_code_2(source, tmp_path, capsys):
    for options in (["--kind", "bpq"], [], ["--vocab-size", "many"], ["--vocab-size", "300", "--text-key"]):
        assert cli.main(["tokenizer", "train", str(source), "-o", str(tmp_path / "t"), *options]) == 2
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and shown.err.startswith("megalm: error: ")
    assert not (tmp_path / "t").exists()


def test_standard_input_is_taken_as_it_stands(tmp_path):
    arguments = ["train", "--kind", "byte", "-o", str(tmp_path / "t")]
    assert CliRunner().invoke(tokenizer_app, arguments).exit_code == 0
    tokenizer = load_tokenizer(tmp_path / "t")
    text = "a\r\nb\rc\u2028é\n"
    for command, ids in (
        ("encode", lambda found: found["ids"]),
        ("show", lambda found: [token["id"] for token in found["tokens"]]),
    ):
        result = CliRunner().invoke(
            tokenizer_app, [command, str(tmp_path / "t"), "--json"], input=text.encode()
        )
        assert ids(json.loads(result.stdout)) == tokenizer.encode(text)
    for command in ("encode", "show", "decode"):
        wrong = CliRunner().invoke(tokenizer_app, [command, str(tmp_path / "t")], input=b"1 caf\xe9")
        assert isinstance(wrong.exception, UserError)
        assert str(wrong.exception).startswith("standard input is not UTF-8 (byte 5")


def test_help_names_every_kind():
    result = CliRunner().invoke(tokenizer_app, ["train", "--help"], env={"COLUMNS": "300"})
    assert all(kind in result.output for kind in KINDS)
