"""FineWeb's own rules: each at its published threshold, and off."""

import pytest

from megalm.corpus.clean.fineweb import FineWeb
from tests.corpus.documents import prose, reason_of

LINES = prose(4, 100, 1).split("\n")


def test_prose_passes():
    assert reason_of(FineWeb(), "\n".join(LINES)) is None


@pytest.mark.parametrize(
    ("good", "bad", "bad_lines", "reason", "off"),
    [
        (12, 88, "{} without a mark at its end", "few_terminal_lines", "min_terminal_lines"),
        (33, 67, "Short line {}.", "short_lines", "max_short_lines"),
    ],
)
def test_shares_of_lines(good: int, bad: int, bad_lines: str, reason: str, off: str):
    odd = [bad_lines.format(f"number {number}") for number in range(bad + 1)]
    rules = {"max_duplicate_line_characters": None, "max_newlines_per_word": None}
    step = FineWeb(FineWeb.Settings(**rules))
    assert reason_of(step, "\n".join([*LINES[:good], *odd[:bad]])) is None
    text = "\n".join([*LINES[: good - 1], *odd])
    assert reason_of(step, text) == f"fineweb.{reason}"
    assert reason_of(FineWeb(FineWeb.Settings(**rules, **{off: None})), text) is None


def test_lines_seen_before():
    text = "\n".join([*LINES, LINES[0]])
    assert (
        reason_of(FineWeb(), text) is None
    )  # one of a hundred lines, of less than a hundredth of the characters
    text = "\n".join([*LINES, *LINES[:3]])
    assert reason_of(FineWeb(), text) == "fineweb.duplicate_line_characters"
    assert reason_of(FineWeb(FineWeb.Settings(max_duplicate_line_characters=0.1)), text) is None


def test_lists_have_many_line_ends_for_their_words():
    text = "\n".join(f"A{number} wonderful-and-very-extraordinarily-long-{number}." for number in range(50))
    assert reason_of(FineWeb(), text) is None
    text = "\n\n\n".join(f"Incomprehensibilities{number} electroencephalographs." for number in range(50))
    assert reason_of(FineWeb(), text) == "fineweb.list"
    assert reason_of(FineWeb(FineWeb.Settings(max_newlines_per_word=None)), text) is None


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_nothing_is_removed_as_empty(text: str):
    assert reason_of(FineWeb(), text) == "fineweb.empty"
