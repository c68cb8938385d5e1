"""Common Crawl by the name of a crawl, from its own server, a mirror or a local copy of one."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.sources.base import DAMAGES, InputFile, Part, Source, open_stream
from megalm.corpus.sources.warc import Warc, Wet
from megalm.errors import UserError

_USUAL_BYTES = {"warc": 1 << 30, "wet": 100 << 20}  # sizes are not asked for: a crawl has some 90,000 files
_LARGEST_LIST = 256 << 20  # bytes; those of crawls have 12 MB


class CommonCrawl(Source):
    """Files of a crawl, read over the network as they are needed and never stored."""

    kind: Literal["commoncrawl"] = Field("commoncrawl", description="What the files are.")
    path: str = Field("", description="List of the files; by default that of the crawl, at the server.")
    crawl: str = Field(description="Name of the crawl, e.g. CC-MAIN-2024-10.")
    format: Literal["warc", "wet"] = Field("warc", description="Raw pages (warc) or their texts (wet).")
    first: int = Field(0, ge=0, description="Number of the first file of the list to read, from 0.")
    count: int = Field(1, ge=1, description="How many files to read (a WARC file has about 1 GB).")
    base_url: str = Field(
        "https://data.commoncrawl.org", description="Server, mirror or directory that holds crawl-data/."
    )

    @property
    def gives_pages(self) -> bool:
        """Those of WARC files are."""
        return self.format == "warc"

    def files(self) -> list[InputFile]:
        """The chosen files of the list."""
        listed = self.path or f"{self.base_url.rstrip('/')}/crawl-data/{self.crawl}/{self.format}.paths.gz"
        try:
            with open_stream(listed) as stream:
                names = stream.read(_LARGEST_LIST).decode().split()
        except (*DAMAGES, FileNotFoundError, UnicodeDecodeError) as error:
            raise UserError(f"source `{self.label}`: {listed} is no list of files ({error})") from None
        chosen = names[self.first : self.first + self.count]
        if not chosen:
            raise UserError(
                f"source `{self.label}`: {listed} has {len(names)} files, none from {self.first} on"
            )
        return [
            InputFile(f"{self.base_url.rstrip('/')}/{name}", name, _USUAL_BYTES[self.format], 0)
            for name in chosen
        ]

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the pages or texts of a file."""
        reader = Warc if self.format == "warc" else Wet
        return reader(path=part.file.path, name=self.label, max_document_bytes=self.max_document_bytes).read(
            part, counters
        )
