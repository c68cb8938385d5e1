"""The table of characters that engines of regular expressions know alike."""

import unicodedata

import pytest

from megalm.tokenizer.unicode13 import _stable, is_stable


def test_what_the_table_has_this_python_has_too():
    signs = range(0x1F000, 0x1FB00)
    missing = [
        c for c in range(0x110000) if _stable()[c] and c not in signs and unicodedata.category(chr(c)) == "Cn"
    ]
    assert not missing


@pytest.mark.skipif(unicodedata.unidata_version != "13.0.0", reason="needs the Unicode 13 of Python 3.10")
def test_the_table_is_that_of_unicode_13():
    signs = range(0x1F000, 0x1FB00)
    expected = [c in signs or unicodedata.category(chr(c)) != "Cn" for c in range(0x110000)]
    assert _stable().tolist() == expected


def test_texts_are_told_by_their_newest_character():
    assert is_stable("")
    assert is_stable("ascii \x00")
    assert is_stable("é東ไ😀\ue000𝟘\U0001fae9")
    for newer in ("\u0870", "\u061d", "\u1dfa", "\u2c2f", "\U00010f70", "\U00012f90", "\u0378", "\ufffe"):
        assert not is_stable(f"text {newer} text")
