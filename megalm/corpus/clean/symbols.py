"""The steps `symbol_lines` and `symbols`: lines and documents that are signs rather than words."""

import re

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.clean.rule import above
from megalm.corpus.step import Filter, ForLanguages, Transform

_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()\-–—’‘“”…。、，！？：；「」（）]|_")
_DIGIT = re.compile(r"\d")
_RUN = re.compile(r"([^\w\s])\1{9,}")


class SymbolLines(Transform):
    """Drops lines without a letter or digit, such as rules and rows of arrows."""

    name = "symbol_lines"

    class Settings(ForLanguages):
        """Options of the step `symbol_lines`."""

    settings: Settings

    def change(self, document: Document) -> str | None:
        """Drop the lines; a document of nothing else is removed."""
        lines = document.text.split("\n")
        kept = [line for line in lines if not line or line.isspace() or any(map(str.isalnum, line))]
        if len(kept) < len(lines):
            self.count("lines", len(lines) - len(kept))
            document.text = "\n".join(kept)
        return None if kept and not document.text.isspace() and document.text else "symbol_lines.empty"


class Symbols(Filter):
    """Removes documents with too many symbols, digits, capitals or long runs of one sign."""

    name = "symbols"

    class Settings(ForLanguages):
        """Options of the step `symbols`: shares of the characters that are no space; null switches a rule off."""

        max_symbols: float | None = Field(
            0.1, description="Greatest share of signs other than common punctuation, such as | # { } = < >."
        )
        max_digits: float | None = Field(0.3, description="Greatest share of digits.")
        max_capitals: float | None = Field(0.6, description="Greatest share of capital letters.")
        max_runs: int | None = Field(
            None, description="Most runs of ten or more of one sign; by default any number."
        )

    settings: Settings

    def check(self, document: Document) -> str | None:
        """The first rule that the document breaks."""
        settings, text = self.settings, document.text
        characters = len(text) - sum(map(text.count, " \n\t"))
        if not characters:
            return None
        if above(len(_SYMBOL.findall(text)) / characters, settings.max_symbols):
            return "symbols.symbols"
        if above(len(_DIGIT.findall(text)) / characters, settings.max_digits):
            return "symbols.digits"
        if (
            settings.max_capitals is not None
            and sum(map(str.isupper, text)) / characters > settings.max_capitals
        ):
            return "symbols.capitals"
        if settings.max_runs is not None and above(len(_RUN.findall(text)), settings.max_runs):
            return "symbols.runs"
        return None
