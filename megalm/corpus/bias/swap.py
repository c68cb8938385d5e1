"""Exchanges gendered words and first names in English text, with the case and the role of her, his and him kept.

Gender: Zhao et al. 2018 (arXiv:1804.06876), Lu et al. 2018 (arXiv:1807.11714); names, paired by their rank: Hall Maudslay
et al. 2019 (arXiv:1909.00871).
"""

import re
from collections.abc import Callable

from megalm.corpus.bias.terms import TermsFile

# Not within addresses, paths, handles and identifiers; `he/she` stays as it is.
_WORD = re.compile(r"(?<![\w@/#])(?<!\w\.)[^\W\d_]+(?![\w@/]|\.\w)")
_NEXT = re.compile(r"[ \t]*(?:\n[ \t]*)?([^\W\d_]+)?")
_BEFORE = re.compile(r"([^\W\d_]+)[ \t\n]*$")
# Words that begin no noun phrase after a possessive: behind one of them, or a mark, `her` is an object and `his` stands alone.
_CLOSED = frozenset(
    """a about above across after again against ago all alone along already also although always am among an and any anymore anyway
    anything are around as aside at away be because been before behind being below beneath beside besides between beyond but by can
    could despite did do does down during each either else enough even ever every everything except for forever from gently had has have he here
    him himself herself how however i if immediately in inside instead into is it just later less like many may me might more much must near neither
    never next nor not nothing now of off often on once one onto or out outside over past quickly quite rather round shall she should since so
    some somehow something somewhere soon still such than that the them then there therefore these they this those though through throughout
    till to today together tomorrow tonight too toward towards twice under underneath unless until up upon us very was we well were what
    whatever when whenever where whether which while who whom whose why will with within without would yesterday yet you""".split()
)
_NO_ADVERBS = frozenset(
    "ally assembly belly bully daily deadly early elderly family fly friendly holy jolly likely lively lonely lovely monthly only "
    "motherly fatherly sisterly brotherly reply silly supply ugly weekly womanly manly worldly yearly".split()
)
_LETTING = frozenset("let lets letting".split())


class Swap:
    """Exchanges the words of `pairs` (and, where asked, `names`) of a file of terms."""

    def __init__(self, file: TermsFile, gender: bool, names: bool):
        self._words: dict[str, str] = {}
        self._names: dict[str, str] = {}
        if gender:
            for female, male in file.pairs:
                self._words |= {female.lower(): male, male.lower(): female}
            self._words |= {word.lower(): other for word, other in file.one_way.items()}
        if names:
            for female, male in zip(file.names.get("female", []), file.names.get("male", []), strict=False):
                self._names |= {female.lower(): male, male.lower(): female}
        self._gender = gender

    def __call__(self, text: str) -> str:
        """The text with every word exchanged; the same text where there is none."""
        return _WORD.sub(self._other(text), text)

    def _other(self, text: str) -> Callable[[re.Match[str]], str]:
        words, names, roles = self._words, self._names, _ROLES if self._gender else {}

        def other(match: re.Match[str]) -> str:
            word = match[0]
            lower = word.lower()
            if lower in roles:
                return _in_case(roles[lower](text, match), word)
            if lower in words:
                return _in_case(words[lower], word)
            if lower in names and word[0].isupper():
                return _in_case(names[lower], word)
            return word

        return other


def _her(text: str, match: re.Match[str]) -> str:
    """him for an object, his before what it possesses."""
    before = _BEFORE.search(text, max(0, match.start() - 20), match.start())
    if _stands_alone(text, match.end()) or (before and before[1].lower() in _LETTING):
        return "him"
    return "his"


def _his(text: str, match: re.Match[str]) -> str:
    """her before what he possesses, hers where it stands alone."""
    return "hers" if _stands_alone(text, match.end()) else "her"


def _stands_alone(text: str, end: int) -> bool:
    """Whether no noun phrase begins behind `end`, adverbs left out: a mark, the end, or a word of the closed classes."""
    while (found := _NEXT.match(text, end)) and (following := (found[1] or "").lower()):
        if following in _CLOSED:
            return True
        if not following.endswith("ly") or following in _NO_ADVERBS:
            return False
        end = found.end()
    return True


def _in_case(word: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


_ROLES: dict[str, Callable[[str, re.Match[str]], str]] = {
    "her": _her,
    "his": _his,
    "him": lambda text, match: "her",
    "hers": lambda text, match: "his",
}
