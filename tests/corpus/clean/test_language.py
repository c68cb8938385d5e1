"""Language identification: labels, thresholds, and rules that apply to some languages alone."""

import pytest

from megalm.corpus.clean.gopher_quality import GopherQuality
from megalm.corpus.clean.language import Language, detect, load_model
from tests.corpus.documents import document

SENTENCES = {
    "en": "The library is open every day, and all books may be taken home for four weeks.",
    "de": "Die Bibliothek ist jeden Tag geöffnet, und alle Bücher dürfen vier Wochen lang ausgeliehen werden.",
    "fr": "La bibliothèque est ouverte tous les jours et tous les livres peuvent être empruntés.",
    "ru": "Библиотека открыта каждый день, и все книги можно взять домой на четыре недели.",
    "zh": "图书馆每天开放，所有的书都可以借回家四个星期。",
    "ar": "المكتبة مفتوحة كل يوم ويمكن استعارة جميع الكتب لمدة أربعة أسابيع.",
}


def make(**options: object) -> Language:
    step = Language(Language.Settings(**options))
    step.start()
    return step


@pytest.mark.parametrize("language", SENTENCES)
def test_languages_are_found_and_written_to_the_metadata(language: str):
    it = document(SENTENCES[language])
    assert make().apply(it) is None
    assert it.metadata["language"] == language and it.metadata["language_score"] > 0.65


def test_other_languages_and_doubtful_documents_are_removed():
    step = make(keep=["en", "de"], thresholds={"de": 1.0})
    assert [step.apply(document(SENTENCES[name])) for name in ("en", "fr", "de")] == [
        *(None, "language.other", "language.uncertain")
    ]
    assert step.tally.histograms["language"] == {"en": 1, "fr": 1, "de": 1}


def test_capitals_line_ends_and_odd_characters_do_not_mislead():
    model = load_model()
    assert detect(model, SENTENCES["de"].upper())[0] == "de"
    assert detect(model, SENTENCES["de"].replace(" ", "\n"))[0] == "de"
    assert detect(model, "\ud800 " + SENTENCES["fr"] + "\x00")[0] == "fr"
    assert detect(model, "")[1] <= 1.0


def test_rules_apply_to_the_languages_that_they_name():
    step = GopherQuality(GopherQuality.Settings(languages=["en"]))
    assert step.apply(document("short", language="en")) == "gopher_quality.too_short"
    assert step.apply(document("kurz", language="de")) is None
    assert step.apply(document("unknown")) is None
