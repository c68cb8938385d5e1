"""The commands on data: what they print, in words and as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megalm.cli_data import dataset_app
from megalm.cli_tokenizer import tokenizer_app
from megalm.dataset import IndexedDataset
from megalm.errors import UserError
from tests.tokenizer.test_bpe import make_texts, write_jsonl

ROOT = Path(__file__).parents[1]


def run(app, *arguments, text: str | None = None) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(app, *arguments, text: str | None = None) -> dict:
    return json.loads(run(app, *arguments, "--json", text=text))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", make_texts(100))


@pytest.fixture
def tokenizer(source: Path, tmp_path: Path) -> Path:
    run(tokenizer_app, "train", source, "-o", tmp_path / "t", "--vocab-size", 300)
    return tmp_path / "t"


def test_tokenizer_commands(source, tokenizer, tmp_path):
    trained = run_json(tokenizer_app, "train", source, "-o", tmp_path / "u", "--vocab-size", 310)
    assert trained["vocab_size"] == 310 and trained["eod_id"] == 0
    described = run_json(tokenizer_app, "info", tmp_path / "u")
    assert described["hash"] == trained["hash"]
    ids = run_json(tokenizer_app, "encode", tokenizer, "lazy dog")["ids"]
    assert run(tokenizer_app, "encode", tokenizer, text="lazy dog").split() == list(map(str, ids))
    assert run_json(tokenizer_app, "decode", tokenizer, *ids) == {"text": "lazy dog"}
    assert run(tokenizer_app, "decode", tokenizer, text=" ".join(map(str, ids))) == "lazy dog\n"


def test_dataset_commands(source, tokenizer, tmp_path):
    build = (
        "build",
        source,
        "--tokenizer",
        tokenizer,
        "-o",
        tmp_path / "d",
        "--workers",
        1,
        "--splits",
        "90,10",
    )
    built = run_json(dataset_app, *build)
    assert built["train"]["documents"] + built["valid"]["documents"] == 100
    assert f"{built['train']['documents']} documents" in run(dataset_app, *build)
    train, valid = tmp_path / "d_train", tmp_path / "d_valid"
    merged = run_json(dataset_app, "merge", train, valid, "-o", tmp_path / "m")
    assert merged["documents"] == 100
    assert run_json(dataset_app, "info", tmp_path / "m")["tokens"] == merged["tokens"]
    assert run_json(dataset_app, "verify", tmp_path / "m")["verified"] is True
    assert "verified: True" in run(dataset_app, "verify", train)
    shown = run_json(dataset_app, "show", train, "--tokenizer", tokenizer, "--document", 2, "--count", 2)
    assert [entry["document"] for entry in shown["documents"]] == [2, 3]
    assert shown["documents"][0]["text"].removesuffix("<|endoftext|>") in make_texts(100)


def test_dataset_split_and_show_commands(source, tokenizer, tmp_path):
    run(dataset_app, "build", source, "--tokenizer", tokenizer, "-o", tmp_path / "d", "--splits", "1")
    whole = tmp_path / "d_train"
    parts = run_json(dataset_app, "split", whole, "-o", tmp_path / "s", "--documents", "30,20")
    assert [part["documents"] for part in parts.values()] == [30, 20, 50]
    by_text = ("split", whole, "-o", tmp_path / "x", "--shares", "50,50", "--by-text")
    assert "x_valid  " in run(dataset_app, *by_text, "--tokenizer", tokenizer)
    for wrong, message in (
        (by_text, "--by-text needs"),
        ((*by_text[:4], "--documents", "a"), "--documents is 'a'"),
        (("show", whole, "batch.seq_length=8"), "are for samples"),
        (("show", whole, "--sample", 1, "--document", 1), "give one of them"),
        (("info", whole, "--packed", 8, "--long-documents", "burn"), "is 'burn': choose cut"),
        (("info", whole, "--long-documents", "drop"), "--long-documents is for --packed"),
        ((*by_text[:6], "--tokenizer", tokenizer), "--tokenizer is for --by-text"),
        (("show", whole, "--valid"), "--valid is for samples"),
        (("show", tmp_path / "absent"), "no dataset at .*absent.idx"),
    ):
        with pytest.raises(UserError, match=message):
            run(dataset_app, *wrong)

    packs = run_json(dataset_app, "info", whole, "--packed", 64)["packs"]
    assert packs["pieces"] >= 100 and 0.5 < packs["efficiency"] <= 1 and packs["left_out"] == 0
    dropped = run_json(dataset_app, "info", whole, "--packed", 20, "--long-documents", "drop")["packs"]
    assert dropped["left_out"] > 0 and dropped["seq_length"] == 20
    assert "packs.efficiency: " in run(dataset_app, "info", whole, "--packed", 64)

    assert run(dataset_app, "show", whole, "--document", 7).startswith("--- document 7, ")
    shown = run(dataset_app, "show", whole, "batch.seq_length=64", "data.packing=cut", "--sample", 3)
    sample = run_json(dataset_app, "show", whole, "batch.seq_length=64", "data.packing=cut", "--sample", 3)
    (entry,) = sample["samples"]
    assert shown.startswith(f"=== sample 3 of {whole}, {entry['tokens']} tokens")
    for piece in entry["pieces"]:
        last = piece["first"] + piece["tokens"] - 1
        title = f"--- document {piece['document']}, tokens {piece['first']} to {last}"
        assert f"{title}\n{piece['text']}\n" in shown


def test_megatrons_option_names_index_the_same_files(source, tokenizer, tmp_path):
    run(dataset_app, "build", source, "--tokenizer", tokenizer, "-o", tmp_path / "d", "--workers", 1)
    command = [sys.executable, ROOT / "tools" / "index_dataset.py", "--input", source, "--workers", "1"]
    options = [
        "--output-prefix",
        tmp_path / "e",
        "--tokenizer",
        tokenizer,
        "--json-keys",
        "text",
        "--append-eod",
    ]
    subprocess.run(list(map(str, command + options)), check=True, timeout=120, cwd=tmp_path)
    assert (tmp_path / "d_train.bin").read_bytes() == (tmp_path / "e_train.bin").read_bytes()
    assert IndexedDataset(tmp_path / "e_train").num_documents > 90
    command[3] = tmp_path / "none.jsonl"
    failed = subprocess.run(
        list(map(str, command + options)),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert failed.returncode == 2
    assert failed.stderr == f"error: input {tmp_path / 'none.jsonl'} does not exist; check the path\n"


def test_the_data_packages_do_not_import_torch():
    code = "import sys, megalm.dataset, megalm.tokenizer, megalm.cli_data, megalm.cli_tokenizer; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def test_the_commands_are_declared_without_numpy_or_tokenizers():
    code = "import sys, megalm.cli_data, megalm.cli_tokenizer; assert not {'numpy', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
