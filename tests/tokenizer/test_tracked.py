"""Tracked texts: what is done to them gives what it gives of plain texts, and characters keep their source."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.tokenizer.tracked import Tracked, apply, concat, whole

SOURCE = 7
# Tracked texts are of small letters and spaces, the others of capitals: a character shows where it came from.
TEXTS = st.text("ab \n", max_size=8).map(lambda text: whole(text, [SOURCE]))
PLAIN = st.text("XY", max_size=5)
MIXED = st.lists(TEXTS | PLAIN, max_size=5).map(concat)


def from_source(text: str) -> list[bool]:
    flags = [False] * len(text)
    for start, stop, source in getattr(text, "spans", ()):
        assert source == SOURCE and 0 <= start < stop <= len(text)
        flags[start:stop] = [True] * (stop - start)
    return flags


def check(result, expected) -> None:
    """`result` reads as `expected`, each character with its source."""
    if isinstance(expected, (list, tuple)):
        assert len(result) == len(expected)
        for one, other in zip(result, expected, strict=True):
            check(one, other)
        return
    assert result == expected
    assert from_source(result) == [character.casefold() == character for character in result]


OPERATIONS = {
    "strip": lambda t: t.strip(),
    "strip characters": lambda t: t.strip("aX"),
    "lstrip": lambda t: t.lstrip(),
    "rstrip": lambda t: t.rstrip(),
    "split": lambda t: t.split(),
    "split at": lambda t: t.split("Xa"),
    "split at once": lambda t: t.split("XX", 1),
    "rsplit": lambda t: t.rsplit("a", 1),
    "splitlines": lambda t: t.splitlines(),
    "partition": lambda t: t.partition("a"),
    "rpartition": lambda t: t.rpartition("X"),
    "replace": lambda t: t.replace("Xa", "ZZ"),
    "replace once": lambda t: t.replace("a", "Z", 1),
    "slice": lambda t: t[1:-1],
    "slice beyond": lambda t: t[3:2],
    "characters": lambda t: list(t),
    "first": lambda t: t[:1] and t[0],
    "last": lambda t: t[-1:] and t[-1],
    "plus": lambda t: "X" + t + "Y",
    "str": str,
}


@pytest.mark.parametrize("name", OPERATIONS)
@given(MIXED)
def test_pieces_of_a_text_keep_the_source_of_each_character(name, text):
    check(OPERATIONS[name](text), OPERATIONS[name](str.__str__(text) + ""))


def test_pieces_are_found_behind_their_separator():
    text = concat(["aXY", whole("YY", [SOURCE])])
    assert [from_source(piece) for piece in text.split("XY")] == [[False], [True, True]]
    text = concat([whole("YX", [SOURCE]), "XX"])
    assert [from_source(piece) for piece in text.rsplit("XX", 1)] == [[True, True], []]


@pytest.mark.parametrize("method", ["upper", "lower", "title", "capitalize"])
@given(MIXED)
def test_other_letters_keep_their_place(method, text):
    changed = getattr(text, method)()
    assert changed == getattr(str.__str__(text) + "", method)()
    assert from_source(changed) == from_source(text)


def test_what_becomes_longer_by_other_letters_is_of_the_source_as_a_whole():
    text = concat(["X", whole("straße", [SOURCE])])
    assert text.upper() == "XSTRASSE" and from_source(text.upper()) == [True] * 8


def test_a_reversed_or_cut_up_text_is_of_the_source_as_a_whole():
    text = concat(["X", whole("abc", [SOURCE])])
    assert text[::-1] == "cbaX" and from_source(text[::-1]) == [True] * 4


@given(st.lists(TEXTS, max_size=4), PLAIN)
def test_functions_on_texts_keep_the_place_of_each(texts, between):
    check(apply(between.join, texts), between.join(texts))
    check(apply(between.join, iter(texts)), between.join(texts))


@given(TEXTS, TEXTS)
def test_formats_keep_the_place_of_each(first, second):
    check(apply(lambda *a: "X%sY%s" % a, first, second), f"X{first}Y{second}")  # noqa: UP031
    check(apply("X{}Y{z}".format, first, z=second), f"X{first}Y{second}")


def test_what_a_function_hides_is_of_the_source_as_a_whole():
    result = apply(lambda t: f"X{len(t)}Y{t!r}", whole("ab", [SOURCE]))
    assert result == "X2Y'ab'" and from_source(result) == [True] * 7
    result = apply(lambda t: "X" + t.encode().decode(), whole("ab", [SOURCE]))
    assert result == "Xab" and from_source(result) == [False, True, True]


def test_a_text_that_holds_a_stand_in_itself_takes_nobody_elses_place():
    result = apply("X\U000f0000{}".format, whole("a", [SOURCE]))
    assert result == "X\U000f0000a" and from_source(result) == [True] * 3


def test_results_that_are_no_texts_and_texts_of_nothing_tracked_are_left_alone():
    assert apply(len, whole("abc", [SOURCE])) == 3
    assert type(apply("-".join, ["a", "b"])) is str
    assert not isinstance(concat(["a", "b"]), Tracked)
