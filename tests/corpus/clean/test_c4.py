"""C4's rules on lines and documents: each as published, and off."""

import pytest

from megalm.corpus.clean.c4 import C4
from tests.corpus.documents import document, prose, reason_of, text_after

PROSE = prose(3, 8, 2)


@pytest.mark.parametrize(
    ("line", "rule", "off"),
    [
        ("This line has no mark at its end", "no_terminal_mark", {"terminal_marks": []}),
        ("This line ends with an ellipsis...", "no_terminal_mark", {"terminal_marks": []}),
        ("Two words.", "too_few_words", {"min_words_per_line": None}),
        ("One long word " + "x" * 1001 + " stands here.", "long_word", {"max_word_length": None}),
        ("Please enable JavaScript to read this page.", "javascript", {"javascript": False}),
        ("By staying you accept our Privacy Policy today.", "policy", {"policy": False}),
        ("This site uses cookies to serve you better.", "policy", {"policy": False}),
    ],
)
def test_lines_that_break_a_rule_are_dropped_and_counted(line: str, rule: str, off: dict[str, object]):
    text = f"{PROSE}\n{line}"
    step = C4()
    assert text_after(step, text) == PROSE
    assert step.tally.counters == {f"lines.{rule}": 1}
    assert text_after(C4(C4.Settings(**off)), text) == text


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Then comes Lorem Ipsum dolor sit.", "lorem_ipsum"),
        ("A function f() { return 1; } is here.", "curly_bracket"),
    ],
)
def test_documents_that_break_a_rule_are_removed(line: str, rule: str):
    text = f"{PROSE}\n{line}"
    assert reason_of(C4(), text) == f"c4.{rule}"
    assert text_after(C4(C4.Settings(**{rule: False})), text) == text


def test_brackets_in_lines_that_go_anyway_remove_nothing():
    assert text_after(C4(), f"{PROSE}\nbody {{ color: red }}") == PROSE


def test_five_sentences_are_enough_and_four_too_few():
    sentences = ["One thing is here."] * 5
    assert reason_of(C4(), "\n".join(sentences)) is None
    assert reason_of(C4(), "\n".join(sentences[:4])) == "c4.too_few_sentences"
    assert reason_of(C4(C4.Settings(min_sentences=None)), sentences[0]) is None
    assert reason_of(C4(C4.Settings(min_sentences=None)), "nothing ends here") == "c4.empty"


def test_marks_of_citations_are_cut_before_the_line_is_judged():
    text = PROSE.replace("\n", "[12][citation needed]\n")
    assert text_after(C4(), text) == PROSE
    assert "[12]" in text_after(C4(C4.Settings(remove_citations=False, terminal_marks=[])), text)


def test_other_languages_pass_untouched():
    it = document("no mark", language="de")
    assert C4(C4.Settings(languages=["en"])).apply(it) is None
    assert it.text == "no mark"
