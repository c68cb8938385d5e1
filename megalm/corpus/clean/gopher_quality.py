"""The step `gopher_quality`: rules on length, symbols and lines of Gopher's data (Rae et al. 2021, arXiv:2112.11446, A1.1)."""

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.clean.rule import above, below
from megalm.corpus.step import Filter, ForLanguages
from megalm.corpus.words import split

STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]


class GopherQuality(Filter):
    """Keeps documents that pass Gopher's rules on quality; an option of null switches its rule off."""

    name = "gopher_quality"

    class Settings(ForLanguages):
        """Options of the step `gopher_quality`: thresholds as published."""

        min_words: int | None = Field(50, description="Fewest words.")
        max_words: int | None = Field(100_000, description="Most words.")
        min_mean_word_length: float | None = Field(
            3.0, description="Least mean length of words in characters."
        )
        max_mean_word_length: float | None = Field(
            10.0, description="Greatest mean length of words in characters."
        )
        max_symbol_ratio: float | None = Field(
            0.1, description="Most hash signs, and most ellipses, for each token."
        )
        max_bullet_lines: float | None = Field(
            0.9, description="Greatest share of lines that begin with a bullet."
        )
        max_ellipsis_lines: float | None = Field(
            0.3, description="Greatest share of lines that end with an ellipsis."
        )
        min_alphabetic_words: float | None = Field(
            0.8, description="Least share of tokens that hold a letter; marks of punctuation are tokens."
        )
        min_stop_words: int | None = Field(2, description="Fewest different stop words.")
        stop_words: list[str] = Field(
            STOP_WORDS,
            description="The stop words: the paper's eight English ones; name others for other languages.",
        )
        bullets: list[str] = Field(
            ["•", "-", "*", "‣", "▪", "●", "◦"], description="What counts as a bullet."
        )

    settings: Settings

    def check(self, document: Document) -> str | None:
        """The first rule that the document breaks."""
        settings, text, parts = self.settings, document.text, split(document)
        tokens, words = parts.tokens, parts.words
        if below(len(words), settings.min_words):
            return "gopher_quality.too_short"
        if above(len(words), settings.max_words):
            return "gopher_quality.too_long"
        if not words:
            return None
        mean_length = sum(map(len, words)) / len(words)
        if below(mean_length, settings.min_mean_word_length):
            return "gopher_quality.short_words"
        if above(mean_length, settings.max_mean_word_length):
            return "gopher_quality.long_words"
        if above(text.count("#") / len(tokens), settings.max_symbol_ratio):
            return "gopher_quality.hashes"
        if above((text.count("...") + text.count("…")) / len(tokens), settings.max_symbol_ratio):
            return "gopher_quality.ellipses"
        return self._lines(parts.lines) or self._kinds(tokens)

    def _lines(self, lines: list[str]) -> str | None:
        bullets = tuple(self.settings.bullets)
        if above(
            sum(line.lstrip().startswith(bullets) for line in lines) / len(lines),
            self.settings.max_bullet_lines,
        ):
            return "gopher_quality.bullet_lines"
        ended = sum(line.rstrip().endswith(("...", "…")) for line in lines)
        if above(ended / len(lines), self.settings.max_ellipsis_lines):
            return "gopher_quality.ellipsis_lines"
        return None

    def _kinds(self, tokens: list[str]) -> str | None:
        alphabetic = sum(1 for token in tokens if token[0].isalpha() or any(map(str.isalpha, token)))
        if below(alphabetic / len(tokens), self.settings.min_alphabetic_words):
            return "gopher_quality.few_alphabetic_words"
        found = (
            sum(word in tokens for word in self.settings.stop_words) if self.settings.min_stop_words else 0
        )
        if below(found, self.settings.min_stop_words):
            return "gopher_quality.few_stop_words"
        return None
