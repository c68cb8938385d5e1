"""Hugging Face's format both ways: transformers and megalm give the same ids."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from megalm.cli import app
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.export import convert_tokenizer, save_tokenizer
from tests.tokenizer.kinds import (
    EOD,
    KINDS,
    LINES,
    TEXT,
    byte_level,
    document,
    texts,
    tokenizer_of,
    write_model,
)


def same_ids(directory: Path, chosen: Callable[[str], bool] = lambda text: True) -> None:
    expected, found = AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
    specials = list(found.special_tokens)

    @settings(max_examples=40)
    @given(texts())
    def check(text):
        if chosen(text) and not any(
            token in text for token in specials
        ):  # which transformers takes for the tokens
            assert found.encode(text) == expected(text, add_special_tokens=False)["input_ids"]

    check()
    for text in (*LINES, TEXT):
        assert found.encode(text) == expected(text, add_special_tokens=False)["input_ids"]
    assert len(expected) == found.vocab_size
    assert expected.eos_token_id == found.eod_id


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_gives_its_ids_in_transformers_and_back(tmp_path, kind):
    tokenizer = tokenizer_of(kind)
    save_tokenizer(tokenizer, tmp_path)
    same_ids(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.hash == tokenizer.hash
    assert again.special_tokens == tokenizer.special_tokens
    assert again.encode(TEXT) == tokenizer.encode(TEXT)


@pytest.mark.parametrize("kind", ["gpt2", "nfc", "word piece"])
def test_what_transformers_saved_gives_its_ids(tmp_path, kind):
    (tmp_path / "tokenizer.json").write_text(document(kind), "utf-8")
    eod = "[SEP]" if kind == "word piece" else EOD
    saved = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token=eod)
    saved.add_tokens(["<tool>"])
    saved.add_special_tokens({"pad_token": "<|pad|>"})
    saved.save_pretrained(tmp_path / "saved")
    same_ids(tmp_path / "saved")
    text = "a <tool>b"
    tokenizer = load_tokenizer(tmp_path / "saved")
    assert tokenizer.encode(text) == saved(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.token_id("<tool>") in tokenizer.encode_ragged([text])[0]


@pytest.mark.parametrize("prefix", [False, True])
def test_a_directory_of_llama_gives_the_ids_of_transformers(tmp_path, prefix):
    write_model("llama" if prefix else "bpe without prefix", tmp_path)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "eos_token": "</s>",
        "add_prefix_space": prefix,
        "legacy": False,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    # before a space in front, the class puts none of its own, unlike SentencePiece
    same_ids(tmp_path, lambda text: not text.startswith((" ", "▁")))


def test_tokens_that_the_configuration_adds_are_found_in_texts(tmp_path):
    (tmp_path / "tokenizer.json").write_text(document("gpt2"), "utf-8")
    size = tokenizer_of("gpt2").vocab_size
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    added = {str(size): {"content": "<tool>", "special": False, **flags}}
    added[str(size + 1)] = {"content": "<|user|>", "special": True, **flags}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOD, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    same_ids(tmp_path)
    tokenizer, expected = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "x <tool>y"
    assert tokenizer.encode(text) == expected(text, add_special_tokens=False)["input_ids"]
    assert size in tokenizer.encode(text)
    assert tokenizer.special_tokens == {EOD: 0, "<|user|>": size + 1}
    text = "x <|user|>y"
    split = expected(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.encode(text) == split


def test_special_tokens_have_the_names_of_transformers(tmp_path):
    save_tokenizer(tokenizer_of("word piece"), tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert [found.cls_token, found.sep_token, found.mask_token] == ["[CLS]", "[SEP]", "[MASK]"]
    assert [found.pad_token, found.unk_token] == ["[PAD]", "[UNK]"]


@pytest.mark.parametrize("in_file", [False, True])
def test_a_chat_template_goes_along(tmp_path, in_file):
    template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text(document("gpt2"), "utf-8")
    config = {"eos_token": EOD, **({} if in_file else {"chat_template": template})}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    if in_file:
        (source / "chat_template.jinja").write_text(template)
    convert_tokenizer(source, tmp_path / "out")
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|user|>hi"
    convert_tokenizer(tmp_path / "out", tmp_path / "twice")
    assert (tmp_path / "twice" / "chat_template.jinja").read_text() == template


def test_a_tokenizer_that_is_there_is_replaced_only_when_asked(tmp_path):
    save_tokenizer(tokenizer_of("unigram nfkc"), tmp_path, chat_template="x")
    with pytest.raises(UserError, match="--overwrite"):
        save_tokenizer(tokenizer_of("gpt2"), tmp_path)
    save_tokenizer(tokenizer_of("gpt2"), tmp_path, overwrite=True)
    assert load_tokenizer(tmp_path).hash == tokenizer_of("gpt2").hash
    assert not (tmp_path / "chat_template.jinja").exists()
    save_tokenizer(tokenizer_of("unigram nfkc"), tmp_path, overwrite=True)
    assert load_tokenizer(tmp_path).hash == tokenizer_of("unigram nfkc").hash


def test_a_tokenizer_of_another_form_is_not_mixed_with_the_new_one(tmp_path):
    source = write_model("llama", tmp_path / "source").parent
    with pytest.raises(UserError, match="--overwrite"):
        save_tokenizer(tokenizer_of("unigram nfkc"), source)
    with pytest.raises(UserError, match="holds the tokenizer itself"):
        convert_tokenizer(source, source / ".." / "source", overwrite=True)
    save_tokenizer(tokenizer_of("unigram nfkc"), source, overwrite=True)
    assert load_tokenizer(source).hash == tokenizer_of("unigram nfkc").hash


def test_the_command_converts_and_reports(tmp_path):
    source = write_model("llama", tmp_path / "source")
    arguments = ["tokenizer", "convert", str(source), str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["hash"] == load_tokenizer(tmp_path / "out").hash == load_tokenizer(source).hash
    assert CliRunner().invoke(app, arguments).exit_code != 0


def test_ids_stay_where_the_vocabulary_has_holes(tmp_path):
    content = json.loads(byte_level().to_str())
    content["model"]["vocab"]["<|far|>"] = 5000
    content["added_tokens"].append({**content["added_tokens"][0], "id": 5000, "content": "<|far|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    tokenizer = load_tokenizer(tmp_path)
    save_tokenizer(tokenizer, tmp_path / "out")
    assert tokenizer.token_id("<|far|>") == 5000 == load_tokenizer(tmp_path / "out").token_id("<|far|>")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<|far|>") == 5000
