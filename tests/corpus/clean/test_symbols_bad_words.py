"""Lines and documents of signs, and lists of bad words."""

from pathlib import Path

import pytest

from megalm.corpus.clean.bad_words import BadWords
from megalm.corpus.clean.symbols import SymbolLines, Symbols
from megalm.errors import UserError
from tests.corpus.documents import document, prose, reason_of, text_after

PROSE = prose(6, 8)


def test_lines_without_letters_or_digits_are_dropped_and_counted():
    step = SymbolLines()
    assert text_after(step, "a\n-----\n\n * * *\n1\n→ →\n___\né") == "a\n\n1\né"
    assert step.tally.counters == {"lines": 4}
    assert step.apply(document("---\n===")) == "symbol_lines.empty"


@pytest.mark.parametrize(
    ("text", "reason", "option"),
    [
        (PROSE + "|{}=<" * 60, "symbols", "max_symbols"),
        (PROSE + " 12345678" * 80, "digits", "max_digits"),
        (PROSE.upper(), "capitals", "max_capitals"),
    ],
)
def test_documents_of_signs_are_removed(text: str, reason: str, option: str):
    assert reason_of(Symbols(), PROSE) is None
    assert reason_of(Symbols(), text) == f"symbols.{reason}"
    assert reason_of(Symbols(Symbols.Settings(**{option: None})), text) is None


def test_runs_of_one_sign_are_counted_when_asked():
    text = PROSE + "\n" + "-" * 10 + "a" + "*" * 12
    step = Symbols(Symbols.Settings(max_runs=1, max_symbols=None))
    assert reason_of(step, text) == "symbols.runs"
    assert reason_of(step, PROSE + "-" * 10) is None


def make(tmp_path: Path, **options: object) -> BadWords:
    (tmp_path / "en.txt").write_text("foul\nvery foul phrase\n\nc++\n", encoding="utf-8")
    (tmp_path / "zh.txt").write_text("坏词\n", encoding="utf-8")
    lists = {"en": tmp_path / "en.txt", "zh": tmp_path / "zh.txt"}
    step = BadWords(BadWords.Settings(lists=lists, **options))
    step.start()
    return step


@pytest.mark.parametrize(
    ("text", "language", "removed"),
    [
        ("A Foul word.", "en", True),
        ("foul", None, True),
        ("Fouls and befoul.", "en", False),
        ("I write c++ here", "en", True),
        ("这是坏词吗", "zh", True),
        ("A foul word.", "de", False),
    ],
)
def test_words_match_as_words(tmp_path: Path, text: str, language: str | None, removed: bool):
    metadata = {"language": language} if language else {}
    assert (reason_of(make(tmp_path), text, **metadata) == "bad_words.found") == removed


def test_a_share_of_words_and_of_documents_may_stay(tmp_path: Path):
    text = "foul " + "good " * 9
    assert reason_of(make(tmp_path, max_share=0.1), text) is None
    assert reason_of(make(tmp_path, max_share=0.09), text) == "bad_words.found"
    assert reason_of(make(tmp_path, keep_fraction=1.0), text) is None


def test_missing_and_empty_lists_are_a_users_mistake(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("none.txt", "does not exist"), ("empty.txt", "is empty")):
        step = BadWords(BadWords.Settings(lists={"en": tmp_path / name}))
        with pytest.raises(UserError, match=message):
            step.start()
