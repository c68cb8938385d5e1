"""The fast encoder gives the ids of `tokenizers`, and leaves to it whatever it could give others for."""

import itertools
import json
import random
import sys

import numpy as np
import psutil
import pytest
import tokenizers
from hypothesis import given, settings
from tokenizers import AddedToken, normalizers, pre_tokenizers

from megalm.tokenizer import fast
from megalm.tokenizer.fast import PATTERNS, fast_encoder
from megalm.tokenizer.huggingface import HuggingFaceTokenizer
from megalm.tokenizer.sentencepiece import model_to_json
from megalm.tokenizer.unicode13 import _stable
from tests.tokenizer.kinds import (
    EOD,
    LINES,
    PATTERN_KINDS,
    SPACED,
    TEXT,
    byte_level,
    document,
    parsed_model,
    texts,
    tokenizer_of,
)

MODELS = ("llama", "bpe without prefix")
FAST = ("gpt2", *PATTERN_KINDS, "nfc", *SPACED, *MODELS)


def reference_of(kind: str) -> tokenizers.Tokenizer:
    content = model_to_json(parsed_model(kind)) if kind in MODELS else document(kind)
    backend = tokenizers.Tokenizer.from_str(content)
    backend.encode_special_tokens = True
    return backend


def encoder_of(content: dict):
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    return fast_encoder(content, lambda text: backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", FAST)
def test_ids_are_those_of_the_reference(kind):
    encoder, reference = tokenizer_of(kind)._fast, reference_of(kind)
    taken = []

    @settings(max_examples=250)
    @given(texts())
    def check(text):
        taken.append(encoder.takes(text))
        if taken[-1]:
            assert encoder.encode(text).tolist() == reference.encode(text, add_special_tokens=False).ids

    check()
    assert sum(taken) > 50


@pytest.mark.parametrize("kind", ["gpt2", "pattern 2", "pattern 3", "llama"])
def test_every_text_that_is_not_new_to_unicode_goes_the_fast_way(kind):
    encoder = tokenizer_of(kind)._fast
    assert all(encoder.takes(text) for text in ("", *LINES, TEXT, "\ue000😀 \x00"))


@pytest.mark.parametrize("kind", [kind for kind in FAST if kind not in (*SPACED, *MODELS)])
def test_characters_newer_than_the_tables_of_either_engine_are_left_to_the_reference(kind):
    tokenizer, reference = tokenizer_of(kind), reference_of(kind)
    for character in ("\u088f", "\ua7ce", "\U00010ec5", "\U0001e6c0", "\U000323b0"):
        text = f"a{character}b {character}1"
        assert not tokenizer._fast.takes(text)
        assert tokenizer.encode_batch([text])[0] == reference.encode(text, add_special_tokens=False).ids


def characters_apart(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same cut, with a vocabulary whose ids tell whether a character is cut from the signs beside it."""
    content = json.loads(backend.to_str())
    byte = list(pre_tokenizers.ByteLevel.alphabet())
    byte = {character: i for i, character in enumerate(sorted(byte))}
    spelled = tokenizer_of("gpt2")
    sign = {sign: sign if sign != " " else "Ġ" for sign in "aZ1 !"}
    high = [c for c in byte if spelled.token_bytes(spelled.token_id(c))[0] >= 0x80]
    merges = [pair for s in sign.values() for h in high for pair in ([s, h], [h, s])]
    merges += [list(pair) for pair in itertools.product([*sign.values(), "s", "'", "Ċ", "č", "ĉ"], repeat=2)]
    content["model"]["merges"] = merges
    content["model"]["vocab"] = byte | {a + b: len(byte) + i for i, (a, b) in enumerate(merges)}
    content["added_tokens"] = []
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def check_classes(number: int, code_points: list[int]) -> None:
    backend = characters_apart(byte_level(list(PATTERNS)[number]))
    encoder = encoder_of(json.loads(backend.to_str()))
    for start in range(0, len(code_points), 200):
        block = "\n".join(
            "a{0}a1{0}1 {0}Z!{0} {0}{0}".format(chr(c)) for c in code_points[start : start + 200]
        )
        assert encoder.encode(block).tolist() == backend.encode(block, add_special_tokens=False).ids


def stable_characters() -> list[int]:
    return [c for c in np.flatnonzero(_stable()).tolist() if not 0xD800 <= c < 0xE000]


@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_characters_are_of_the_same_class_for_both_engines(number):
    check_classes(number, random.Random(number).sample(stable_characters(), 1500) + list(range(0x80, 0x300)))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_every_character_is_of_the_same_class_for_both_engines(number):
    """Of ideographs and syllables, which all are of one class, by each pattern a sixteenth, by the first one all."""
    private = [*range(0xE100, 0xF800), *range(0xF0100, 0xFFF00), *range(0x100000, 0x10FF00)]
    alike = [
        *range(0x3500, 0x9F00),
        *range(0xAD00, 0xD700),
        *range(0x20100, 0x2A600),
        *range(0x2A800, 0x2EB00),
    ]
    left_out = {c for c in alike if number and c % 16 != number}
    check_classes(number, sorted({*stable_characters()} - {*private} - left_out))


def test_a_long_text_with_a_character_newer_than_the_tables_is_left_to_the_reference():
    backend = characters_apart(byte_level())
    backend.add_special_tokens([EOD])
    tokenizer = HuggingFaceTokenizer(backend.to_str(), EOD)
    text = "a\U000323b0" * 60_000
    expected = backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == tokenizer.encode_batch([text])[0] == expected
    assert tokenizer._fast.encode(text).tolist() != expected, "the engines have come to agree"


@pytest.mark.parametrize("number", range(len(PATTERNS)))
def test_signs_in_every_order_are_cut_alike_by_both_engines(number):
    backend = characters_apart(byte_level(list(PATTERNS)[number]))
    encoder = encoder_of(json.loads(backend.to_str()))
    texts = [
        "".join(signs)
        for length in range(1, 5)
        for signs in itertools.product("aZ1 !s'\n\r\t", repeat=length)
    ]
    expected = backend.encode_batch_fast(texts, add_special_tokens=False)
    wrong = [t for t, e in zip(texts, expected, strict=True) if encoder.encode(t).tolist() != e.ids]
    assert not wrong


def test_special_tokens_are_text_for_the_fast_encoder():
    tokenizer = tokenizer_of("gpt2")
    ids = tokenizer._fast.encode(f"a {EOD} b")
    assert tokenizer.eod_id not in ids
    assert tokenizer.decode(ids) == f"a {EOD} b"


def test_texts_with_tokens_that_are_looked_for_first_are_left_to_the_reference():
    backend = byte_level()
    backend.add_tokens([AddedToken("<tool>", normalized=False), "\n\n\n"])
    tokenizer = HuggingFaceTokenizer(backend.to_str(), EOD)
    assert not tokenizer._fast.takes("a <tool> b")
    assert tokenizer._fast.takes("a <too b")
    assert tokenizer.token_id("<tool>") in tokenizer.encode_ragged(["a <tool> b"])[0]
    assert tokenizer.encode_batch(["x\n\n\n\ny"])[0] == backend.encode("x\n\n\n\ny").ids


def test_texts_that_are_not_in_the_normal_form_are_left_to_the_reference():
    encoder = tokenizer_of("nfc")._fast
    assert encoder.takes("zwölf é")
    assert not encoder.takes("zwo\u0308lf")


def change(kind: str, **parts) -> dict:
    content = json.loads(document(kind))
    model = {**content["model"], **parts.pop("model", {})}
    return {**content, "model": model, **parts}


@pytest.mark.parametrize(
    "content",
    [
        change("gpt2", model={"dropout": 0.1}),
        change("gpt2", model={"end_of_word_suffix": "</w>"}),
        change("gpt2", normalizer={"type": "Lowercase"}),
        change(
            "gpt2", pre_tokenizer=json.loads(pre_tokenizers.ByteLevel(add_prefix_space=True).__getstate__())
        ),
        change("gpt2", pre_tokenizer=json.loads(pre_tokenizers.Whitespace().__getstate__())),
        json.loads(byte_level(r"\p{N}|\P{N}+").to_str()),
        json.loads(document("pattern 2").replace('"Isolated"', '"MergedWithPrevious"')),
        json.loads(document("pattern 2").replace('"invert":false', '"invert":true')),
        json.loads(byte_level(next(iter(PATTERNS)), normalizers.NFKC()).to_str()),
        json.loads(document("word piece")),
        json.loads(model_to_json(parsed_model("bpe plain"))),
        change("metaspace first", pre_tokenizer={**SPACED["metaspace first"][1], "replacement": "_"}),
        change("gemma", pre_tokenizer={"type": "WhitespaceSplit"}),
        {**json.loads(model_to_json(parsed_model("llama"))), "pre_tokenizer": {"type": "WhitespaceSplit"}},
    ],
)
def test_kinds_that_are_not_proven_equal_have_no_fast_encoder(content, caplog):
    assert encoder_of(content) is None
    assert not caplog.records, "left to the comparison on opening, which cannot see all differences"


def test_a_vocabulary_without_some_byte_has_no_fast_encoder():
    content = json.loads(document("gpt2"))
    vocab = {token: i for token, i in content["model"]["vocab"].items() if token != "ÿ"}
    merges = [merge for merge in content["model"]["merges"] if "ÿ" not in "".join(merge)]
    assert encoder_of({**content, "model": {**content["model"], "vocab": vocab, "merges": merges}}) is None


def test_an_encoder_that_differs_on_a_probe_is_not_used_and_that_is_told(caplog):
    assert fast_encoder(json.loads(document("gpt2")), lambda text: [1] * len(text)) is None
    assert "gives other ids" in caplog.text


def test_without_the_library_the_reference_encodes_and_that_is_told(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    tokenizer = HuggingFaceTokenizer(document("gpt2"), EOD)
    assert tokenizer.encode_batch([TEXT]) == [tokenizer_of("gpt2").encode(TEXT)]
    assert "gigatoken is not installed" in caplog.text


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_words_that_never_come_again_take_no_memory_for_good(kind, monkeypatch):
    monkeypatch.setattr(fast, "LARGEST_CACHE", 4 << 20)
    monkeypatch.setattr(fast, "CHECK_EVERY", 50_000)
    tokenizer = HuggingFaceTokenizer(tokenizer_of(kind).content, tokenizer_of(kind).eod_token)
    rng = random.Random(0)
    texts = [" ".join(rng.randbytes(8).hex() for _ in range(1000)) for _ in range(300)]
    expected = tokenizer_of(kind).encode_batch(texts[-3:])
    tokenizer.encode_ragged(texts[:50])
    before = psutil.Process().memory_info().rss
    for start in range(50, 300, 10):
        tokenizer.encode_ragged(texts[start : start + 10])
    assert psutil.Process().memory_info().rss < before + (16 << 20)
    assert tokenizer.encode_batch(texts[-3:]) == expected


@pytest.mark.parametrize("kind", ["gpt2", "pattern 2", "llama"])
@pytest.mark.parametrize(
    "unit", ["a", " ", "\n", "e" + "\u0301" * 999, "東", "7", "👩‍👩‍👧", "▁", "a\U000323b0"]
)
def test_a_character_a_hundred_thousand_times_is_encoded_like_by_the_reference(kind, unit):
    text = unit * (120_000 // len(unit))
    assert tokenizer_of(kind).encode(text) == reference_of(kind).encode(text, add_special_tokens=False).ids
