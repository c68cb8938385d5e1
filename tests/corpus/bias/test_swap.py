"""Counterfactual texts: hand-made pairs, the case kept, and twice is once where a rule has no doubt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.bias.swap import Swap
from megalm.corpus.bias.terms import load_terms

FILE = load_terms().file
BOTH = Swap(FILE, gender=True, names=True)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("He saw her.", "She saw him."),
        ("He saw her and her brother.", "She saw him and his sister."),
        ("Her book is hers; I gave it to her", "His book is his; I gave it to him"),
        (
            "This is his. His own son knew him, a friend of his.",
            "This is hers. Her own daughter knew her, a friend of hers.",
        ),
        ("Let her go with her\nmother.", "Let him go with his\nfather."),
        ("They met her yesterday, quietly.", "They met him yesterday, quietly."),
        ("They met her quietly at her newly built home.", "They met him quietly at his newly built home."),
        ("HE SAID: HIS QUEEN!", "SHE SAID: HER KING!"),
        ("Mother-in-law, the waitress’s uncle", "Father-in-law, the waiter’s aunt"),
        ("She's herself, he'd say.", "He's himself, she'd say."),
        ("Mr. Brown and MR White", "Ms. Brown and MS White"),
        ("Mrs. Brown, the hostess", "Mr. Brown, the host"),
        ("Mary's friend JOHN, mary and Marys", "James's friend LISA, mary and Marys"),
        ("heather, there, hero2, @king, king@his.org, www.he.com/she, his_name", None),
        ("Nothing here.", None),
        ("", None),
    ],
)
def test_words_and_names_are_exchanged(text, other):
    expected = text if other is None else other
    names = dict(zip(FILE.names["female"], FILE.names["male"], strict=True))
    names |= {male: female for female, male in names.items()}
    expected = expected.replace("James", names["Mary"]).replace("LISA", names["John"].upper())
    assert BOTH(text) == expected


WORDS = [word for pair in FILE.pairs for word in pair if word.lower() not in ("ms", "mr")]
SURE = [
    "her mother",
    "his book",
    "saw her.",
    "saw him.",
    "it is his.",
    "it is hers!",
    "to him and",
    "for her, but",
]


@given(
    st.lists(
        st.one_of(
            st.sampled_from(WORDS),
            st.sampled_from(WORDS).map(str.upper),
            st.sampled_from(WORDS).map(str.capitalize),
            st.sampled_from([*FILE.names["female"], *FILE.names["male"]]),
            st.sampled_from(SURE),
            st.sampled_from(["Ms. Smith", "Mr. Smith", "and then", "the", "a walk,", "\n", "2 + 2."]),
        ),
        max_size=30,
    ),
    st.sampled_from([" ", "  ", "\n", ", "]),
)
def test_twice_gives_the_original(parts, between):
    text = between.join(parts)
    assert BOTH(BOTH(text)) == text


def test_what_is_not_asked_for_stays():
    text = "Mary and her brother John"
    assert Swap(FILE, gender=True, names=False)(text) == "Mary and his sister John"
    names = Swap(FILE, gender=False, names=True)(text).split()
    assert names[1:4] == ["and", "her", "brother"] and names[0] != "Mary" and names[4] != "John"
