"""The step `c4`: keeps lines that read like sentences (C4: Raffel et al. 2020, arXiv:1910.10683, section 2.2)."""

import re

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.step import ForLanguages, Transform
from megalm.corpus.words import count_sentences

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class C4(Transform):
    """Drops lines that break C4's rules, then documents with too few sentences left; each rule can be switched off.

    The rules and their order are those of the code that made C4 (and of TensorFlow Datasets), which has more than
    the paper names: words of more than 1000 characters, citations, phrases on cookies and policies.
    """

    name = "c4"

    class Settings(ForLanguages):
        """Options of the step `c4`: thresholds as published."""

        terminal_marks: list[str] = Field(
            [".", "?", "!", '"', "'"],
            description="Keep lines that end with one of these and not with an ellipsis; [] keeps all.",
        )
        min_words_per_line: int | None = Field(3, description="Fewest words of a line, parted by spaces.")
        max_word_length: int | None = Field(1000, description="Drop lines with a longer word.")
        min_sentences: int | None = Field(5, description="Remove documents with fewer sentences left.")
        remove_citations: bool = Field(True, description="Cut marks such as [1], [edit], [citation needed].")
        lorem_ipsum: bool = Field(True, description="Remove documents with a line of `lorem ipsum`.")
        javascript: bool = Field(True, description="Drop lines with the word JavaScript.")
        curly_bracket: bool = Field(
            True, description="Remove documents with { in a line that other rules keep."
        )
        policy: bool = Field(True, description="Drop lines on cookies, privacy policy and terms of use.")

    settings: Settings

    def change(self, document: Document) -> str | None:
        """Drop lines; a reason where the document must go."""
        kept = []
        for line in document.text.split("\n"):
            line = line.strip()
            words = line.split()
            rule = self._words_rule(words)
            if rule is None:
                if self.settings.remove_citations and "[" in line:
                    line = _CITATION.sub("", line)
                rule = self._line_rule(line, len(words))
            if rule is None:
                kept.append(line)
            elif rule in ("lorem_ipsum", "curly_bracket"):
                return f"c4.{rule}"
            elif words:
                self.count(f"lines.{rule}")
        text = "\n".join(kept).strip()
        if self.settings.min_sentences and sum(map(count_sentences, kept)) < self.settings.min_sentences:
            return "c4.too_few_sentences"
        if not text:
            return "c4.empty"
        if text != document.text:
            document.text = text
        return None

    def _words_rule(self, words: list[str]) -> str | None:
        longest = self.settings.max_word_length
        return "long_word" if longest and words and len(max(words, key=len)) > longest else None

    def _line_rule(self, line: str, words: int) -> str | None:
        settings = self.settings
        marks = tuple(settings.terminal_marks)
        if marks and (not line.endswith(marks) or line.endswith("...")):
            return "no_terminal_mark"
        if settings.min_words_per_line and words < settings.min_words_per_line:
            return "too_few_words"
        lower = line.lower()
        if settings.lorem_ipsum and "lorem ipsum" in lower:
            return "lorem_ipsum"
        if settings.javascript and "javascript" in lower:
            return "javascript"
        if settings.curly_bracket and "{" in line:
            return "curly_bracket"
        if settings.policy and any(phrase in lower for phrase in _POLICY):
            return "policy"
        return None
