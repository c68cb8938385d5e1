"""The step `counterfactual`: documents with gendered words and names exchanged, in place of the original or beside it."""

from collections.abc import Iterator
from typing import Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.bias.balance import chance
from megalm.corpus.bias.representation import TermsSettings, TermsStep
from megalm.corpus.bias.swap import Swap
from megalm.corpus.bias.terms import load_terms
from megalm.corpus.step import Transform

COUNTERFACTUAL_OF = "counterfactual_of"
"""Metadata key: the id of the document of which this one is the counterfactual."""


class Counterfactual(TermsStep, Transform):
    """Exchanges what `swap` names in a share of the documents, picked by the hash of their id.

    With `mode: add` the copy follows the original under the id ID/counterfactual. Documents without such a word, and those in
    another language than the lists', stay as they are.
    """

    name = "counterfactual"
    needs_text = True

    class Settings(TermsSettings):
        """Options of the step `counterfactual`."""

        swap: list[Literal["gender", "names"]] = Field(
            ["gender", "names"], min_length=1, description="What is exchanged: gendered words, first names."
        )
        mode: Literal["add", "replace"] = Field(
            "add", description="add: a second document beside the original; replace: in its place."
        )
        rate: float = Field(1.0, ge=0, le=1, description="Share of the documents.")

    settings: Settings

    def start(self) -> None:
        """Read the lists, once a process."""
        self._terms = load_terms(self.settings.terms)
        swap = self.settings.swap
        self._swap = Swap(self._terms.file, gender="gender" in swap, names="names" in swap)

    def change(self, document: Document) -> None:
        """Exchange, with `mode: replace`."""
        if self.settings.mode == "replace" and (text := self._counterfactual(document)) is not None:
            document.text = text
            document.metadata[COUNTERFACTUAL_OF] = document.id
            self.count("replaced")

    def additions(self, document: Document) -> Iterator[Document]:
        """The counterfactual, with `mode: add`."""
        if self.settings.mode == "add" and (text := self._counterfactual(document)) is not None:
            metadata = document.metadata | {COUNTERFACTUAL_OF: document.id}
            yield Document(text=text, id=f"{document.id}/counterfactual", metadata=metadata)

    def _counterfactual(self, document: Document) -> str | None:
        """The other text; None where the document is to stay alone."""
        language = self._terms.file.language
        if (
            document.metadata.get("language", language) != language
            or chance(document.id) >= self.settings.rate
        ):
            return None
        text = self._swap(document.text)
        return None if text == document.text else text
