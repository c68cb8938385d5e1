"""What the rules on quality have in common: options that name the languages they are meant for."""

from abc import abstractmethod

from datatrove.data import Document
from pydantic import Field

from megalm.config.section import Section
from megalm.corpus.step import Filter


class RuleSettings(Section):
    """The option that every rule on quality has."""

    languages: list[str] | None = Field(
        None,
        description="Apply to documents in these languages alone, as the step `language` found them (codes such as "
        "en); others pass. By default to all. A recipe may name the step once a language, with other thresholds.",
    )


class Rule(Filter):
    """A filter that looks at documents of the chosen languages alone."""

    Settings = RuleSettings

    @abstractmethod
    def judge(self, document: Document) -> str | None:
        """None keeps the document, else the reason."""

    def check(self, document: Document) -> str | None:
        """As `judge` says, for documents in the chosen languages."""
        return self.judge(document) if concerns(document, self.settings.languages) else None


def concerns(document: Document, languages: list[str] | None) -> bool:
    """Whether the document is in one of `languages`, or none are named."""
    return languages is None or document.metadata.get("language") in languages


def above(value: float, limit: float | None) -> bool:
    """Whether `value` exceeds `limit`; None is no limit."""
    return limit is not None and value > limit


def below(value: float, limit: float | None) -> bool:
    """Whether `value` falls short of `limit`; None is no limit."""
    return limit is not None and value < limit
