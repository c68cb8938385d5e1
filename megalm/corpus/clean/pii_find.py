"""Personal data and secrets of all kinds in one text, each place counted once."""

from collections.abc import Sequence

from megalm.corpus.clean.pii_patterns import FINDERS, Kind, Match

MASKS: dict[Kind, str] = {
    "secret": "<SECRET>",
    "email": "<EMAIL>",
    "iban": "<IBAN>",
    "card": "<CARD>",
    "ip": "<IP>",
    "phone": "<PHONE>",
}


def find(text: str, kinds: Sequence[Kind]) -> list[Match]:
    """What is of one of `kinds`, in order; where two overlap, the one whose kind comes first in FINDERS."""
    if text.isspace() or not text:
        return []
    matches: list[Match] = []
    for kind in kinds:
        matches += FINDERS[kind](text)
    if not matches:
        return []
    order = {kind: place for place, kind in enumerate(FINDERS)}
    return sorted(_earlier_kinds_first(sorted(matches, key=lambda m: (order[m.kind], m.begin))))


def _earlier_kinds_first(matches: list[Match]) -> list[Match]:
    covered = set[int]()
    kept = []
    for match in matches:
        places = range(match.begin, match.end)
        if covered.isdisjoint(places):
            covered.update(places)
            kept.append(match)
    return kept
