"""GPT-2's and tiktoken's files: the ids of the libraries they come from, and damage that is named."""

import base64
import itertools
import json
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from tiktoken_ext import openai_public
from transformers import AutoTokenizer

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.formats import ENCODINGS, GPT2_PATTERN
from tests.tokenizer.kinds import EOD, LINES, TEXT, ranks, texts, write_gpt2, write_ranks


def official_patterns(monkeypatch) -> dict[str, str]:
    """The patterns as tiktoken itself defines them, without fetching any ranks."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    return {name: openai_public.ENCODING_CONSTRUCTORS[name]()["pat_str"] for name in ENCODINGS}


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_files_have_the_ids_of_their_library(tmp_path, names):
    reference = write_gpt2(tmp_path, names)
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        tokenizer = load_tokenizer(path)
        for text in (*LINES, TEXT):
            assert tokenizer.encode(text) == reference.encode(text).ids
        assert tokenizer.special_tokens == {EOD: tokenizer.eod_id} == {EOD: 0}


def test_gpt2_files_have_the_ids_of_transformers(tmp_path):
    write_gpt2(tmp_path)
    for prefix in (False, True):
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix, "eos_token": EOD}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        expected, tokenizer = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
        for text in LINES:
            assert tokenizer.encode(text) == expected(text, add_special_tokens=False)["input_ids"]


def test_a_class_that_cuts_texts_in_another_way_is_refused(tmp_path):
    write_gpt2(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizerFast"}')
    with pytest.raises(UserError, match="of class CLIPTokenizer, which cuts texts in its own way"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "p50k_base"])
def test_rank_files_have_the_ids_of_tiktoken(tmp_path, monkeypatch, name):
    pattern = official_patterns(monkeypatch)[name]
    reference = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks(), special_tokens={})
    file = write_ranks(tmp_path / f"{name}.tiktoken")
    specials = {EOD: len(ranks())}
    (tmp_path / "megalm.json").write_text(json.dumps({"special_tokens": specials}))
    tokenizer = load_tokenizer(file)
    assert tokenizer.special_tokens == specials

    @settings(max_examples=300)
    @given(texts())
    def check(text):
        expected = reference.encode_ordinary(text)
        assert tokenizer.encode(text) == tokenizer.encode_ragged([text])[0].tolist() == expected

    check()
    assert tokenizer.encode(TEXT) == reference.encode_ordinary(TEXT)
    assert tokenizer._fast is not None


@pytest.mark.parametrize("name", [name for name in ENCODINGS if name != "p50k_base"])
def test_signs_in_every_order_are_cut_as_by_tiktoken(tmp_path, monkeypatch, name):
    signs = "aZ1 !s'\n\r\t"
    pairs = [first + second for first, second in itertools.product(signs, repeat=2)]
    tokens = [*(bytes([byte]) for byte in range(256)), *(pair.encode() for pair in pairs)]
    merged = {token: rank for rank, token in enumerate(tokens)}
    pattern = official_patterns(monkeypatch)[name]
    reference = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=merged, special_tokens={})
    file = tmp_path / f"{name}.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in merged.items()))
    (tmp_path / "megalm.json").write_text(json.dumps({"special_tokens": {EOD: 9000}}))
    tokenizer = load_tokenizer(file)
    texts = ["".join(chosen) for length in range(1, 5) for chosen in itertools.product(signs, repeat=length)]
    expected = [reference.encode_ordinary(text) for text in texts]
    assert tokenizer._encode_all(texts) == expected
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer._fast is not None


def test_special_tokens_of_known_rank_files_are_those_of_tiktoken(monkeypatch):
    official_patterns(monkeypatch)
    for name, (_, specials) in ENCODINGS.items():
        assert specials == openai_public.ENCODING_CONSTRUCTORS[name]()["special_tokens"]


def test_a_rank_file_of_unknown_name_needs_its_pattern(tmp_path):
    file = write_ranks(tmp_path / "mine.tiktoken")
    with pytest.raises(UserError, match="does not tell how texts are cut"):
        load_tokenizer(file)
    pattern = r"\p{L}+|\s+|[^\p{L}\s]+"
    metadata = {"pattern": pattern, "special_tokens": {"<end>": 5000}, "eod_token": "<end>"}
    (tmp_path / "megalm.json").write_text(json.dumps(metadata))
    tokenizer = load_tokenizer(tmp_path)
    reference = tiktoken.Encoding("mine", pat_str=pattern, mergeable_ranks=ranks(), special_tokens={})
    assert tokenizer.encode(TEXT) == reference.encode_ordinary(TEXT)
    assert (tokenizer.eod_id, tokenizer.vocab_size) == (5000, 5001)
    assert tokenizer.decode([5000]) == "<end>"
    assert 5000 not in tokenizer.encode("<end>")


def test_a_token_that_no_merges_lead_to_is_found_as_a_whole_as_by_tiktoken(tmp_path):
    more = {**ranks(), b" qzxqzx": len(ranks())}
    file = tmp_path / "cl100k_base.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in more.items()))
    (tmp_path / "megalm.json").write_text(json.dumps({"special_tokens": {EOD: 9000}}))
    tokenizer = load_tokenizer(file)
    pattern = ENCODINGS["cl100k_base"][0].replace(r"\z", "$")
    reference = tiktoken.Encoding("c", pat_str=pattern, mergeable_ranks=more, special_tokens={})
    for text in ("a qzxqzx b", "a qzxqzxx", " qzxqzx"):
        assert tokenizer.encode(text) == reference.encode_ordinary(text)
        assert tokenizer.encode_ragged([text])[0].tolist() == reference.encode_ordinary(text)
    assert len(ranks()) in tokenizer.encode("a qzxqzx b")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"pattern": r"\S+|\s+", "special_tokens": {"<end>": 5000}}, "leaves special token '<end>' whole"),
        ({"pattern": r"\S+|(\s+", "special_tokens": {}}, "is no regular expression"),
        ({"special_tokens": {EOD: 7}}, "has the id 7 of another token"),
        ({"special_tokens": [EOD]}, "must be spellings and their ids"),
        ({"special_tokens": {EOD: "7"}}, "must be spellings and their ids"),
    ],
)
def test_metadata_that_does_not_fit_the_ranks_is_named(tmp_path, metadata, message):
    file = write_ranks(tmp_path / "r50k_base.tiktoken")
    (tmp_path / "megalm.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=message):
        load_tokenizer(file)


def test_a_special_token_may_have_an_id_between_the_ranks(tmp_path):
    """p50k_base leaves 50256 free among its ranks."""
    moved = {token: rank + (rank > 400) for token, rank in ranks().items()}
    file = tmp_path / "p50k_base.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in moved.items()))
    (tmp_path / "megalm.json").write_text(json.dumps({"special_tokens": {EOD: 401}}))
    tokenizer = load_tokenizer(file)
    reference = tiktoken.Encoding(
        "p", pat_str=GPT2_PATTERN.replace(r"\z", "$"), mergeable_ranks=moved, special_tokens={}
    )
    assert tokenizer.eod_id == 401
    for text in (*LINES, TEXT):
        assert tokenizer.encode_ragged([text])[0].tolist() == reference.encode_ordinary(text)
        assert tokenizer.encode(text) == reference.encode_ordinary(text)


def test_ranks_under_the_name_of_a_model_are_told_from_sentencepiece(tmp_path):
    write_ranks(tmp_path / "tokenizer.model")
    metadata = {"pattern": "cl100k_base", "special_tokens": {EOD: 9000}}
    (tmp_path / "megalm.json").write_text(json.dumps(metadata))
    assert load_tokenizer(tmp_path).eod_id == 9000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, b"!!!! 900"], "line LAST is not a token in base64"),
        (lambda lines: [*lines, b"YQ=="], "line LAST is not a token in base64"),
        (lambda lines: [*lines, b"YQ== x"], "line LAST is not a token in base64"),
        (lambda lines: lines[1:], "byte 33 has no rank"),
        (lambda lines: [*lines, base64.b64encode(b"quxqux") + b" 5"], "two tokens share a rank"),
        (lambda lines: [], "byte 0 has no rank"),
    ],
)
def test_damaged_rank_files_are_named(tmp_path, change, message):
    file = write_ranks(tmp_path / "r50k_base.tiktoken")
    file.write_bytes(b"\n".join(change(file.read_bytes().splitlines())))
    with pytest.raises(UserError, match=message.replace("LAST", str(len(ranks()) + 1))):
        load_tokenizer(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "is not JSON"),
        ("vocab.json", "[1]", "is no vocabulary"),
        ("vocab.json", '{"a": "b"}', "is no vocabulary"),
        ("vocab.json", '{"a": 0, "b": 0}', "is no vocabulary: two tokens share an id"),
        ("vocab.json", "[" * 100_000, "is not JSON"),
        ("merges.txt", "a b c\n", "'a b c' is not two tokens"),
        ("merges.txt", "日 本\n", "not a readable tokenizer"),
    ],
)
def test_damaged_gpt2_files_are_named(tmp_path, name, content, message):
    write_gpt2(tmp_path)
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_without_its_merges_is_named(tmp_path: Path):
    write_gpt2(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"merges\.txt is missing"):
        load_tokenizer(tmp_path / "vocab.json")
