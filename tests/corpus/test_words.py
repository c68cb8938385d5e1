"""Words, lines and sentences, and that they are split once a text."""

from megalm.corpus.words import Split, count_sentences, sentence_spans, split, words_of
from tests.corpus.documents import document


def test_words_numbers_marks_and_addresses_are_tokens():
    text = "It's 3.14, U.S. Q3... see https://a.b/c?d=1 (ok)!"
    assert Split(text).tokens == [
        *("It", "'s", "3.14", ",", "U.S.", "Q3", "...", "see", "https://a.b/c?d=1", "(", "ok", ")", "!")
    ]
    assert Split(text).words == ["It", "'s", "3.14", "U.S.", "Q3", "see", "https://a.b/c?d=1", "ok"]


def test_ascii_and_other_texts_are_split_alike():
    text = "Don't stop at 5km, S. Miller: 1,000 e-mails... https://a.b/c _x_ (A1)."
    assert Split(text).tokens == Split(text + " é").tokens[:-1]


def test_vowel_signs_and_accents_belong_to_their_words():
    assert Split("हिन्दी में यह है।").tokens == ["हिन्दी", "में", "यह", "है", "।"]
    assert Split("cafe\u0301 naïve it’s").tokens == ["cafe\u0301", "naïve", "it", "’s"]


def test_scripts_without_spaces_have_a_word_a_character():
    assert Split("这是句子。").words == ["这", "是", "句", "子"]


def test_blank_lines_part_paragraphs_and_are_no_lines():
    parts = Split("a\nb\n\n \nc\n")
    assert parts.lines == ["a", "b", "c"]
    assert parts.paragraphs == ["a\nb", "c"]


def test_sentences_end_at_marks_before_space_and_an_open_rest_counts():
    text = 'One. Two at 3.14? "Three!" Four'
    assert [text[begin:end].strip() for begin, end in sentence_spans(text)] == [
        *("One.", "Two at 3.14?", '"Three!"', "Four")
    ]
    assert count_sentences("这是。那是！") == 2
    assert count_sentences("  ") == 0


def test_token_ids_are_equal_for_equal_tokens_alone():
    assert Split("a b a c b").token_ids.tolist() == [0, 1, 0, 2, 1]


def test_a_text_is_split_once_and_again_when_it_changes():
    it = document("one two")
    assert split(it) is split(it)
    before = words_of(it)
    it.text = "three"
    assert words_of(it) == ["three"]
    assert before == ["one", "two"]
