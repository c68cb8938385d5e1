"""Bytes of pages in many encodings, rightly declared, wrongly and not at all."""

import pytest

from megalm.corpus.clean.encoding import decode

GERMAN = "Größe, Übermut und Straße sind schöne Wörter für Prüfungen. " * 5
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 5
JAPANESE = "これは日本語の文章です。文字コードを調べます。" * 5


@pytest.mark.parametrize(
    ("text", "codec", "header", "name"),
    [
        (GERMAN, "utf-8", "", "utf-8"),
        (GERMAN, "cp1252", "text/html; charset=ISO-8859-1", "cp1252"),
        (RUSSIAN, "cp1251", 'text/html; charset="windows-1251"', "cp1251"),
        (RUSSIAN, "koi8_r", "text/html;charset=koi8-r", "koi8-r"),
        (JAPANESE, "shift_jis", "text/html; charset=Shift_JIS", "shift_jis"),
        (JAPANESE, "iso2022_jp", "text/html; charset=iso-2022-jp", "iso2022_jp"),
        (GERMAN, "utf-16", "", "utf-16-le"),
        (GERMAN, "utf-8-sig", "text/html; charset=latin1", "utf-8"),
    ],
)
def test_declared_encodings(text: str, codec: str, header: str, name: str):
    assert decode(text.encode(codec), header) == (text, name)


def test_utf8_wins_over_a_wrong_declaration():
    assert decode(GERMAN.encode(), "text/html; charset=iso-8859-1") == (GERMAN, "utf-8")


def test_the_page_says_what_the_header_does_not():
    page = f'<html><head><meta charset="windows-1251"></head>{RUSSIAN}'
    assert decode(page.encode("cp1251")) == (page, "cp1251")
    xml = f'<?xml version="1.0" encoding="koi8-r"?>{RUSSIAN}'
    assert decode(xml.encode("koi8_r"))[0] == xml


@pytest.mark.parametrize(("text", "codec"), [(RUSSIAN, "cp1251"), (JAPANESE, "euc_jp"), (GERMAN, "cp1252")])
def test_undeclared_encodings_are_recognised(text: str, codec: str):
    assert decode(text.encode(codec))[0] == text


def test_unknown_names_and_bytes_of_no_encoding_never_raise():
    assert decode(b"plain", "text/html; charset=no-such-thing") == ("plain", "utf-8")
    text, _ = decode(bytes(range(256)) * 20, "text/html; charset=utf-8")
    assert "\ufffd" in text


def test_a_page_cut_within_a_character_is_utf8():
    assert decode("aé".encode()[:-1]) == ("a\ufffd", "utf-8")
