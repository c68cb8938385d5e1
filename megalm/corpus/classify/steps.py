"""The steps `quality_classifier` and `toxicity_classifier`: keep documents by the score of a trained classifier."""

import math
from pathlib import Path
from typing import ClassVar, Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.classify.model import Classifier
from megalm.corpus.step import Filter, ForLanguages
from megalm.corpus.words import split

_BINS = 20


class ClassifierSettings(ForLanguages):
    """Options of the steps `quality_classifier` and `toxicity_classifier`."""

    model: Path = Field(..., description="A file that `megalm corpus classifier train` wrote.")
    label: str | None = Field(
        None, description="The label whose probability is the score; of two by default the one looked for."
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The score that parts documents; by default the one stored in the model.",
    )
    score_key: str = Field(..., description="Key of the score in the metadata.")
    keep: Literal["above", "below"] = Field(
        ..., description="Keep documents that reach the threshold (above) or those that do not (below)."
    )


class _ClassifierStep(Filter):
    """Writes a classifier's score to the metadata, and keeps the documents on one side of a threshold.

    Documents in other languages than those of `languages` pass without a score, if any are named.
    """

    Settings: ClassVar[type[ClassifierSettings]] = ClassifierSettings
    settings: ClassifierSettings

    def files(self) -> list[Path]:
        """The model."""
        return [self.settings.model]

    def verify(self) -> None:
        """The model must be one, and have the label."""
        type(self)(self.settings).start()

    def start(self) -> None:
        """Map the model, which all workers of a machine share."""
        settings = self.settings
        self._classifier = Classifier.load(settings.model)
        self._label = self._classifier.choose_label(settings.label)
        stored = self._classifier.description.thresholds[self._label]
        self._threshold = stored if settings.threshold is None else settings.threshold

    def check(self, document: Document) -> str | None:
        """A reason for a score on the wrong side."""
        score = self._classifier.score(split(document).tokens, self._label)
        document.metadata[self.settings.score_key] = score
        self.observe(self.settings.score_key, min(math.floor(score * _BINS), _BINS - 1) / _BINS)
        side = "above" if score >= self._threshold else "below"
        return None if side == self.settings.keep else f"{self.name}.{side}"


class QualityClassifier(_ClassifierStep):
    """Keeps documents whose quality a classifier finds high enough."""

    name = "quality_classifier"

    class Settings(ClassifierSettings):
        """Options of the step `quality_classifier`."""

        score_key: str = Field("quality_score", description="Key of the score in the metadata.")
        keep: Literal["above", "below"] = Field(
            "above",
            description="Keep documents that reach the threshold (above) or those that do not (below).",
        )

    settings: Settings


class ToxicityClassifier(_ClassifierStep):
    """Removes documents that a classifier finds toxic."""

    name = "toxicity_classifier"

    class Settings(ClassifierSettings):
        """Options of the step `toxicity_classifier`."""

        score_key: str = Field("toxicity_score", description="Key of the score in the metadata.")
        keep: Literal["above", "below"] = Field(
            "below",
            description="Keep documents that do not reach the threshold (below) or those that do (above).",
        )

    settings: Settings
