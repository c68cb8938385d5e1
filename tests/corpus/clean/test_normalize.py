"""Unicode repair and normalisation, each part on its own."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.clean.normalize import Normalize, normalize
from tests.corpus.documents import document, text_after

SETTINGS = Normalize.Settings()
ALL = Normalize.Settings(lower_case=True, plain_punctuation=True)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("cafe\u0301", "café"),
        ("a\u00a0b\u2003c\td", "a b c d"),
        ("a   b  \n\n\n\n\nc \n", "a b\n\nc"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("zero\u200bwidth soft\u00adhyphen\ufeff\x00\x07", "zerowidth softhyphen"),
        ("\u202eright\u202c \u200eleft", "right left"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("def f():\n    return  1", "def f():\n    return 1"),
        ("\n\n  first", "  first"),
    ],
)
def test_characters_are_unified(text: str, wanted: str):
    assert normalize(text, SETTINGS) == wanted


@pytest.mark.parametrize("broken", ["Ã¼ber die StraÃŸe", "itâ€™s a naÃ¯ve cafÃ©"])
def test_wrongly_decoded_text_is_repaired(broken: str):
    assert normalize(broken, SETTINGS) == broken.encode("cp1252").decode("utf-8")
    assert normalize(broken, Normalize.Settings(repair=False)) == broken


@pytest.mark.parametrize(
    "text",
    [
        "می‌خواهم",
        "क्‍ष",
        "👩‍👩‍👧",
        "Ångström und Größe – „gut“",
        "日本語　の文章".replace("　", ""),
        "Ãngela à São Paulo",
    ],
)
def test_right_text_stays(text: str):
    assert normalize(text, SETTINGS) == text


def test_letters_and_punctuation_are_folded_when_asked():
    assert normalize("“It’s” – ＡＢ！… «Ja»", ALL) == '"it\'s" - ab!... "ja"'


def test_each_part_can_be_switched_off():
    off = Normalize.Settings(repair=False, nfc=False, control_characters=False, spaces=False)
    text = "cafe\u0301  \x07 Ã¼\r\n\n\n\n"
    assert normalize(text, off) == text


@given(st.text(max_size=80))
def test_any_text_becomes_valid(text: str):
    result = normalize(text, SETTINGS)
    result.encode("utf-8")
    assert unicodedata.is_normalized("NFC", result)
    assert "\n\n\n" not in result and "\r" not in result and not result.endswith((" ", "\n"))


@given(st.text(max_size=80))
def test_a_second_time_changes_nothing(text: str):
    settings = Normalize.Settings(repair=False)  # what is left may look like mojibake by chance
    once = normalize(text, settings)
    assert normalize(once, settings) == once


def test_broken_spaces_are_repaired_too():
    assert normalize("voilÃ\u00a0 le cafÃ©", SETTINGS) == "voilà le café"


def test_changed_documents_are_counted_and_empty_ones_removed():
    step = Normalize()
    assert text_after(step, "same") == "same" and not step.tally.counters
    assert text_after(step, "a\u00a0b") == "a b" and step.tally.counters == {"documents_changed": 1}
    assert step.apply(document("\u200b \n")) == "normalize.empty"
