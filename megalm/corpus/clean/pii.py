"""The step `pii`: masks personal data and secrets, keeping the document."""

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.clean.pii_find import MASKS, find
from megalm.corpus.clean.pii_patterns import FINDERS, Kind
from megalm.corpus.step import ForLanguages, Transform


class Pii(Transform):
    """Puts a mask such as <EMAIL> in the place of personal data; counts by kind, in the tally and the metadata."""

    name = "pii"

    class Settings(ForLanguages):
        """Options of the step `pii`: which kinds are masked, and by what."""

        email: bool = Field(True, description="Mask e-mail addresses.")
        phone: bool = Field(
            True,
            description="Mask phone numbers: international, North American, or after a word such as `phone`.",
        )
        ip: bool = Field(True, description="Mask public IP addresses; private ones stay.")
        card: bool = Field(True, description="Mask numbers of payment cards (Luhn sum).")
        iban: bool = Field(True, description="Mask international bank account numbers (remainder by 97).")
        secret: bool = Field(
            True, description="Mask keys of well-known services, private keys and passwords in addresses."
        )
        masks: dict[Kind, str] = Field(
            {}, description="Other masks than <EMAIL>, <PHONE>, <IP>, ... for single kinds."
        )

    settings: Settings

    def change(self, document: Document) -> str | None:
        """Mask; no document is removed."""
        kinds = [kind for kind in FINDERS if getattr(self.settings, kind)]
        text, counts = mask(document.text, kinds, MASKS | self.settings.masks)
        if counts:
            document.text = text
            document.metadata["pii"] = counts
            for kind, count in counts.items():
                self.count(kind, count)
        return None


def mask(text: str, kinds: list[Kind], masks: dict[Kind, str]) -> tuple[str, dict[str, int]]:
    """The text with what is of one of `kinds` masked, and how many of each there were."""
    matches = find(text, kinds)
    if not matches:
        return text, {}
    parts, counts, end = [], dict[str, int](), 0
    for match in matches:
        parts += [text[end : match.begin], masks[match.kind]]
        counts[match.kind] = counts.get(match.kind, 0) + 1
        end = match.end
    return "".join([*parts, text[end:]]), counts
