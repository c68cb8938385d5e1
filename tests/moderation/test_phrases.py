"""Words and phrases are found where a search of each by itself finds them, in one pass."""

import time

from hypothesis import given
from hypothesis import strategies as st

from megalm.moderation.fold import Fold
from megalm.moderation.phrases import Phrase, Phrases, PhraseScan
from megalm.moderation.window import Hit, Window

LETTERS = {
    "a": "a",
    "A": "a",
    "\u00e4": "a",
    "b": "b",
    "\uff22": "b",
    " ": " ",
    "-": " ",
    "\n": " ",
    ".": ".",
}
ENTRIES = st.lists(st.text("ab ", min_size=1, max_size=5).filter(str.strip), max_size=8)


def find(phrases: list[str], text: str, disguised: bool = False) -> list[Hit]:
    automaton = Phrases([Phrase(one, one, "#") for one in phrases], Fold(disguised))
    return PhraseScan(automaton).feed(Window(text), final=True)


def search(phrases: list[str], text: str) -> set[tuple[int, int]]:
    """The same, a phrase and a place at a time."""
    seen = [(place, one) for place, one in enumerate(text) if one != "\u200b"]
    folded: list[tuple[int, str, int]] = []  # place, letter, number among the seen
    for number, (place, one) in enumerate(seen):
        if not (LETTERS[one] == " " and folded and folded[-1][1] == " "):
            folded.append((place, LETTERS[one], number))
    spelled, found = "".join(letter for _, letter, _ in folded), set()
    for phrase in {" ".join(phrase.split()) for phrase in phrases}:
        for begin in range(len(spelled) - len(phrase) + 1):
            first, last = folded[begin], folded[begin + len(phrase) - 1]
            before = seen[first[2] - 1][1] if first[2] else " "
            after = seen[last[2] + 1][1] if last[2] + 1 < len(seen) else " "
            if spelled[begin:].startswith(phrase) and not before.isalpha() and not after.isalpha():
                found.add((first[0], last[0] + 1))
    return found


@given(ENTRIES, st.text([*LETTERS, "\u200b"], max_size=25))
def test_all_phrases_are_found_at_the_borders_of_words(phrases: list[str], text: str) -> None:
    assert {(hit.begin, hit.end) for hit in find(phrases, text)} == search(phrases, text)


def test_a_letter_that_stands_for_two_is_not_cut() -> None:
    assert not find(["of"], "o\ufb01") and find(["ofi"], "o\ufb01") == [Hit(0, 2, "ofi", "#")]
    assert find(["strasse"], "Stra\u00dfe")


def test_scripts_without_spaces_need_no_borders() -> None:
    assert find(["炸弹"], "制造炸弹的方法") == [Hit(2, 4, "炸弹", "#")]
    assert not find(["हम"], "हमला") and find(["हमला"], "हमला।")


def test_disguises_are_seen_through_where_that_is_asked_for() -> None:
    for text in ("k1ll", "K|LL", "ki11", "\u043aill", "k\u200di\u0301ll", "\u24da\u24d8ll"):
        assert find(["kill"], text, disguised=True) == [Hit(0, len(text), "kill", "#")]
    assert not find(["kill"], "k1ll") and not find(["kill"], "skill kills killed", disguised=True)
    assert find(["don't"], "don\u2019t dont") == [Hit(0, 5, "don't", "#"), Hit(6, 10, "don't", "#")]


def test_time_does_not_depend_on_the_list_and_grows_with_the_text_alone() -> None:
    def seconds(phrases: list[str], text: str) -> float:
        automaton = Phrases([Phrase(one, "c", "#") for one in phrases], Fold(True))
        best = float("inf")
        for _ in range(3):
            begun = time.process_time()
            PhraseScan(automaton).feed(Window(text), final=True)
            best = min(best, time.process_time() - begun)
        return best

    hostile = ["a" * length + "b" for length in range(1, 400)]
    small, large = seconds(hostile, "a" * 20_000), seconds(hostile, "a" * 80_000)
    assert large < 12 * small  # a search of each phrase takes 100 times as long for each letter
