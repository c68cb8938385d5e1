"""Removes documents whose text is too short or too long."""

from datatrove.data import Document
from pydantic import Field, model_validator

from megalm.corpus.step import Filter, ForLanguages


class LengthFilter(Filter):
    """Keeps documents whose text has between `min_characters` and `max_characters` characters."""

    name = "length"

    class Settings(ForLanguages):
        """Options of the step `length`."""

        min_characters: int = Field(1, ge=0, description="Remove texts with fewer characters.")
        max_characters: int | None = Field(
            None, ge=1, description="Remove texts with more characters; by default none."
        )

        @model_validator(mode="after")
        def _in_order(self) -> "LengthFilter.Settings":
            if self.max_characters is not None and self.max_characters < self.min_characters:
                raise ValueError(
                    f"min_characters is more than max_characters, which is {self.max_characters}"
                )
            return self

    settings: Settings

    def check(self, document: Document) -> str | None:
        """A reason for a text that is too short or too long."""
        if len(document.text) < self.settings.min_characters:
            return "length.too_short"
        if self.settings.max_characters is not None and len(document.text) > self.settings.max_characters:
            return "length.too_long"
        return None
