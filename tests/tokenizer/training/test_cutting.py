"""The words that are counted are those that the trained tokenizer will see."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalm.tokenizer.training.cutting import NORMALIZERS, PRETOKENIZERS, Cutter, normalizer_of

TEXTS = [
    "",
    "Hello world, it's IT'S they'LL 'tis ''re don’t 'ſ 12345 1234567 3.14 ½Ⅷ٣𝟘 a 1  2   b",
    "  two   spaces\tand\t\ttabs \n\n\n lines\r\n\r\n \r end  \n\n  ",
    "日本語のテキスト、한국어 텍스트. ภาษาไทย हिन्दी العربية עברית é e\u0301 ß İ ǅ ʰ",
    "😀👩‍👩‍👧🇩🇪\ufe0f\u200d\u200b\ufeff\u2060\xad \x00\x1c\x1f\x7f\x85\xa0\u1680\u180e\u2003\u2028\u3000x",
    "x = {'a': [1, 2]};  // __init__(self)\n\t\treturn a->b!=c && d||!e;...---===$+<=>^`|~\n",
    "newer than the tables: \u1c8a a\u088fb \u2e53 1\U0001e4f01 \U00011f02 old: a\u2e43b a\u166db a\u09fdb",
]


def reference(text: str, name: str, normalizers: tuple[str, ...] = ()) -> Counter:
    if normalizers:
        text = normalizer_of(normalizers).normalize_str(text)
    pieces = PRETOKENIZERS[name].backend().pre_tokenize_str(text)
    return Counter(text[begin:end].encode() for _, (begin, end) in pieces)


@pytest.mark.parametrize("name", PRETOKENIZERS)
def test_words_are_those_of_the_library(name):
    for text in TEXTS:
        assert Cutter(name).count([text]) == reference(text, name)


@pytest.mark.parametrize("name", PRETOKENIZERS)
@settings(max_examples=150)
@given(
    text=st.text(
        st.sampled_from(" \n\r\ta1'sſ.é東½\u0301\u3000𝟘!_") | st.characters(exclude_categories=["Cs"])
    )
)
def test_words_of_any_text_are_those_of_the_library(name, text):
    assert Cutter(name).count([text]) == reference(text, name)


def test_every_punctuation_mark_is_one_for_the_library_too():
    marks = [chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000]
    for begin in range(0, len(marks), 4096):
        text = " ".join(f"a{mark}b" for mark in marks[begin : begin + 4096] if mark.isprintable())
        assert Cutter("words").count([text]) == reference(text, "words")


def test_counts_of_several_texts_add_up():
    for name in PRETOKENIZERS:
        together = Cutter(name).count(TEXTS)
        assert together == sum((reference(text, name) for text in TEXTS), Counter())


@pytest.mark.parametrize("name", NORMALIZERS)
def test_texts_are_normalized_first(name):
    assert Cutter("words", (name,)).count(TEXTS) == sum(
        (reference(text, "words", (name,)) for text in TEXTS), Counter()
    )


def test_normalizers_do_what_their_names_say():
    text = "Élan ﬁ Ａ e\u0301"
    changed = {name: normalizer_of((name,)).normalize_str(text) for name in NORMALIZERS}
    assert changed["nfc"] == "Élan ﬁ Ａ é"
    assert changed["nfkc"] == "Élan fi A é"
    assert changed["nfd"] == "E\u0301lan ﬁ Ａ e\u0301"
    assert changed["nfkd"] == "E\u0301lan fi A e\u0301"
    assert changed["lowercase"] == "élan ﬁ ａ e\u0301"
    assert changed["strip-accents"] == "Elan ﬁ Ａ e"
    assert changed["bert"] == "elan ﬁ ａ e"
    assert changed["bert-cased"] == "Élan ﬁ Ａ e\u0301"
    assert normalizer_of(("nfkc", "lowercase")).normalize_str("Ａ") == "a"
    assert normalizer_of(()) is None


def test_without_a_cut_every_character_is_a_word():
    assert Cutter(None).count(["abaß", "a"]) == {b"a": 3, b"b": 1, "ß".encode(): 1}
