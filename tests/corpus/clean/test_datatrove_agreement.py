"""Our rules beside datatrove's own blocks on the same generated documents, with the same words in both.

datatrove's blocks split words with spaCy, which is no dependency here; they are given our words, so that what is compared
are the rules. `benchmarks/filter_agreement.py` compares with spaCy's words, on real pages.
"""

import random
from collections.abc import Iterator

import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.utils import text as datatrove_text
from datatrove.utils import word_tokenizers

from megalm.corpus.clean.c4 import C4
from megalm.corpus.clean.fineweb import FineWeb
from megalm.corpus.clean.gopher_quality import GopherQuality
from megalm.corpus.clean.gopher_repetition import GopherRepetition
from megalm.corpus.step import Step
from megalm.corpus.words import Split, sentence_spans
from tests.corpus.documents import prose

COUNT = 400


class OurWords(word_tokenizers.WordTokenizer):
    """Our words and sentences for datatrove's blocks."""

    def word_tokenize(self, text: str) -> list[str]:
        return Split(text).tokens

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[begin:end] for begin, end in sentence_spans(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return sentence_spans(text)


@pytest.fixture(autouse=True)
def same_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(word_tokenizers, "load_word_tokenizer", lambda *_: OurWords())
    datatrove_text.split_into_parts.cache_clear()
    yield
    datatrove_text.split_into_parts.cache_clear()


def generated(seed: int) -> str:
    """Prose with a random amount of up to two of the faults that the rules look for."""
    rng = random.Random(seed)
    lines = prose(seed, rng.choice([3, 6, 20, 60]), rng.choice([1, 2, 4])).split("\n")
    for _ in range(rng.randint(0, 2)):
        lines = [*lines, *rng.choice(faults(rng, lines, rng.choice([1, 3, 10, 30])))]
        rng.shuffle(lines)
    return rng.choice(["\n", "\n\n"]).join(lines)


def faults(rng: random.Random, lines: list[str], count: int) -> list[list[str]]:
    """Lines of each fault."""
    some = rng.choices(lines, k=count)
    return [
        [lines[0]] * count,
        [f"• {line}" for line in some],
        [f"{line} and so on..." for line in some],
        ["# 12 # 13 %"] * count,
        [f"item {rng.random():.6f}" for _ in some],
        ["a b c d e f g"] * count,
        ["We use cookies and need JavaScript here."] * count,
        ["Please note the lorem ipsum text."] * (count == 1),
        ["It is a function() { x } here."] * (count == 1),
        ["extraordinarilylongcompositeword"] * count,
        [" ".join(["very good"] * count) + "."],
    ]


TEXTS = [generated(seed) for seed in range(COUNT)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GopherQuality(), GopherQualityFilter()),
        (GopherRepetition(), GopherRepetitionFilter()),
        (C4(), C4QualityFilter()),
        (FineWeb(), FineWebQualityFilter()),
    ],
    ids=["gopher_quality", "gopher_repetition", "c4", "fineweb"],
)
def test_rules_decide_as_datatrove_does(ours: Step, theirs: BaseFilter):
    kept = removed = explained = 0
    for number, text in enumerate(TEXTS):
        mine, other = Document(text, str(number)), Document(text, str(number))
        reason = ours.apply(mine)
        keeps, their_reason = get_filter_result(theirs.filter(other))
        if (reason is None) != bool(keeps):
            assert known_difference(reason, their_reason, text), (reason, their_reason, text)
            explained += 1
        elif keeps:
            assert mine.text == other.text
            kept += 1
        else:
            removed += 1
    assert kept > COUNT * 0.1 and removed > COUNT * 0.1 and explained < COUNT * 0.05


def known_difference(ours: str | None, theirs: str | None, text: str) -> bool:
    """The differences that the two tests below show, and no others."""
    if ours in ("gopher_quality.bullet_lines", "gopher_quality.ellipsis_lines"):
        return "\n\n" in text
    if theirs in ("top_2_gram", "top_3_gram", "top_4_gram"):
        n, tokens = int(theirs[4]), Split(text).tokens
        ngrams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        return len(set(ngrams)) == len(ngrams)
    return False


def test_a_short_text_without_repetition_is_no_repetition():
    """datatrove takes an n-gram that occurs once for the most frequent, and finds it in a large share of a short text."""
    text = "These words occur once."
    assert get_filter_result(GopherRepetitionFilter().filter(Document(text, "a"))) == (False, "top_2_gram")
    assert GopherRepetition().apply(Document(text, "a")) is None


def test_blank_lines_are_no_lines():
    """datatrove counts the blank lines between paragraphs, so that bullets of a list never make 0.9 of them."""
    text = "\n\n".join(f"• {line}" for line in prose(1, 20, 1).split("\n"))
    assert get_filter_result(GopherQualityFilter().filter(Document(text, "a")))[0]
    assert GopherQuality().apply(Document(text, "a")) == "gopher_quality.bullet_lines"
