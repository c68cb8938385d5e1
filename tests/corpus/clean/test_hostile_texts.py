"""Texts made to keep regular expressions busy take time in proportion to their length, not to its square."""

import pytest

from megalm.corpus.clean.c4 import C4
from megalm.corpus.clean.fineweb import FineWeb
from megalm.corpus.clean.gopher_quality import GopherQuality
from megalm.corpus.clean.gopher_repetition import GopherRepetition
from megalm.corpus.clean.language import Language
from megalm.corpus.clean.normalize import Normalize
from megalm.corpus.clean.symbols import SymbolLines, Symbols
from megalm.corpus.step import Step
from megalm.corpus.words import count_sentences
from tests.corpus.documents import document

LENGTH = 400_000
UNITS = [
    "a",
    " ",
    "\n",
    " \n",
    "\n ",
    ".",
    '."',
    "A.",
    "1",
    "1.",
    "[1",
    "é\u0301",
    "Ã¼",
    "\u200b",
    "https://",
    "'a",
    "#",
    "的",
    "\r",
]


def steps() -> list[Step]:
    """Each step with no rule that ends the work early."""
    return [
        Normalize(),
        Language(),
        GopherQuality(
            GopherQuality.Settings(min_words=None, min_mean_word_length=None, max_mean_word_length=None)
        ),
        GopherRepetition(),
        C4(C4.Settings(terminal_marks=[], min_words_per_line=None, max_word_length=None)),
        FineWeb(),
        SymbolLines(),
        Symbols(),
    ]


@pytest.mark.timeout(60)  # a second or less; work that grows with the square of the length would take minutes
@pytest.mark.parametrize("end", ["", "x"])
@pytest.mark.parametrize("unit", UNITS)
def test_long_texts_end_soon(unit: str, end: str):
    text = unit * (LENGTH // len(unit)) + end
    for step in steps():
        step.start()
        step.apply(document(text))
    assert count_sentences(text) >= 0
