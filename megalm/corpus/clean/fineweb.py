"""The step `fineweb`: the rules that FineWeb adds to C4's and Gopher's (Penedo et al. 2024, arXiv:2406.17557, section 3.6)."""

from datatrove.data import Document
from datatrove.utils.text import TERMINAL_PUNCTUATION
from pydantic import Field

from megalm.corpus.clean.gopher_repetition import duplicates
from megalm.corpus.clean.rule import above, below
from megalm.corpus.step import Filter, ForLanguages
from megalm.corpus.words import split

_TERMINAL = tuple(sorted(TERMINAL_PUNCTUATION))


class FineWeb(Filter):
    """Keeps documents whose lines look like prose rather than lists; an option of null switches its rule off."""

    name = "fineweb"

    class Settings(ForLanguages):
        """Options of the step `fineweb`: thresholds as published."""

        min_terminal_lines: float | None = Field(
            0.12, description="Least share of lines that end with a mark of punctuation."
        )
        max_short_lines: float | None = Field(0.67, description="Greatest share of short lines.")
        short_line: int = Field(30, ge=0, description="Characters of a short line at most.")
        max_duplicate_line_characters: float | None = Field(
            0.01, description="Greatest share of characters in lines seen before (the paper removes from 0.1 on, "
            "FineWeb's own recipe from 0.01 on)."
        )  # fmt: skip
        max_newlines_per_word: float | None = Field(0.3, description="Most line ends for each token.")

    settings: Settings

    def check(self, document: Document) -> str | None:
        """The first rule that the document breaks."""
        settings, text, parts = self.settings, document.text, split(document)
        lines = parts.lines
        if not lines:
            return "fineweb.empty"
        if below(sum(line.endswith(_TERMINAL) for line in lines) / len(lines), settings.min_terminal_lines):
            return "fineweb.few_terminal_lines"
        if above(
            sum(len(line) <= settings.short_line for line in lines) / len(lines), settings.max_short_lines
        ):
            return "fineweb.short_lines"
        line_ends = text.count("\n")
        repeated = duplicates(lines)[1] / (len(text) - line_ends)
        if above(repeated, settings.max_duplicate_line_characters):
            return "fineweb.duplicate_line_characters"
        if above(line_ends, _scaled(settings.max_newlines_per_word, len(parts.tokens))):
            return "fineweb.list"
        return None


def _scaled(share: float | None, count: int) -> float | None:
    return None if share is None else share * count
