"""The step `representation_filter`: removes documents of which too great a share are terms of a kind, such as slurs."""

from collections import Counter

from datatrove.data import Document
from pydantic import Field

from megalm.config.suggest import nearest
from megalm.corpus.bias.representation import TermsSettings, TermsStep
from megalm.corpus.bias.scan import scan
from megalm.corpus.bias.terms import DEROGATORY, Terms, axis_of, load_terms
from megalm.corpus.step import Filter
from megalm.corpus.words import split
from megalm.errors import UserError


class RepresentationFilter(TermsStep, Filter):
    """Keeps documents in which the terms of each label make up no greater share of the words than is allowed.

    Reasons name the first label over its limit: representation_filter.derogatory. Documents in another language than the
    lists' pass.
    """

    name = "representation_filter"
    needs_text = True

    class Settings(TermsSettings):
        """Options of the step `representation_filter`."""

        max_share: dict[str, float] = Field(
            {DEROGATORY: 0.01},
            min_length=1,
            description="Greatest share of the words by label, an axis or AXIS.GROUP, such as {derogatory: 0.01, derogatory.women: 0}.",
        )

    settings: Settings

    def start(self) -> None:
        """Read the lists, once a process."""
        self._terms = load_terms(self.settings.terms)
        check_labels(self.name, self.settings.max_share, self._terms)

    def check(self, document: Document) -> str | None:
        """The first label whose terms are too great a share."""
        found = scan(document, self._terms)
        if found is None or not found.mentions:
            return None
        counts = count_with_axes(found.mentions)
        words = len(split(document).words)
        for label, limit in self.settings.max_share.items():
            if counts[label] > limit * words:
                return f"{self.name}.{label}"
        return None


def count_with_axes(mentions: Counter[str]) -> Counter[str]:
    """The mentions of each label and, added up, of each axis."""
    counts = Counter(mentions)
    for label, count in mentions.items():
        counts[axis_of(label)] += count
    return counts


def check_labels(step: str, labels: dict[str, float], terms: Terms) -> None:
    """Raise UserError for a label that the lists do not have, naming the nearest."""
    known = [*terms.axes, *sorted(terms.labels)]
    for label in labels:
        if label not in known:
            raise UserError(
                f"{step}: the term lists have no `{label}`{nearest(label, known)} (axes: {', '.join(terms.axes)})"
            )
