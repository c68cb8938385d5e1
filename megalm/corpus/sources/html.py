"""HTML files: a document is a page, as raw bytes for the extraction."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.pages import page_document
from megalm.corpus.sources.base import Part, Source, read_whole


class Html(Source):
    """HTML files, one page each."""

    kind: Literal["html"] = Field("html", description="What the files are.")
    url: str = Field(
        "", description="What stands before a file's path in its page's url, e.g. https://example.org/."
    )
    suffixes = (".html", ".htm", ".xhtml")

    @property
    def gives_pages(self) -> bool:
        """They are."""
        return True

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the page."""
        file = part.file
        data = read_whole(file.path, self.max_document_bytes, counters)
        if data is not None:
            metadata = {"source": self.label, "path": file.name}
            yield page_document(
                f"{self.label}/{file.name}", f"{self.url}{file.name}", data, "text/html", metadata
            )
