"""What counts as a word in which script."""

import pytest

from megalm.tokenizer.words import count_words


@pytest.mark.parametrize(
    ("text", "words", "characters"),
    [
        ("", 0, 0),
        (" \n-- !", 0, 0),
        ("The quick, brown fox.", 4, 0),
        ("don't stop-gap rock'n'roll x-", 4, 0),
        ("3.14 a_b", 4, 0),
        ("L’été, déjà e\u0301tude", 3, 0),
        ("नमस्ते दुनिया", 2, 0),
        ("한국어 단어", 2, 0),
        ("мир, труд!", 2, 0),
        ("مرحبا بالعالم", 2, 0),
        ("東京は", 3, 3),
        ("ｶﾀｶﾅ、カタ。", 6, 6),
        ("สวัสดี ครับ", 7, 7),
        ("in 東京 now", 4, 2),
        ("𝐀𝐁 𐐷", 2, 0),
        ("𠀀𠀁", 2, 2),
    ],
)
def test_words_are_runs_of_letters_or_characters_of_scripts_without_spaces(text, words, characters):
    assert count_words(text) == (words, characters)


def test_ascii_texts_are_counted_as_others_are():
    text = "It's a well-known 'quote': 3 x 4 -- f(x), isn't it?"
    assert count_words(text)[0] + 1 == count_words(text + " é")[0] == 12
