"""One site as a source: crawled once into a WARC file beside the corpus, then read like any other."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from datatrove.data import Document
from pydantic import Field, PrivateAttr

from megalm import atomic
from megalm.corpus.crawl import AGENT, MAX_DEPTH, crawl
from megalm.corpus.links import host_of
from megalm.corpus.sources.base import InputFile, Part, Source
from megalm.corpus.sources.warc import Warc


class Crawl(Source):
    """The pages of a site, as its robots.txt allows, read when the build is planned unless the file is there.

    What the crawl left out is counted too: `forbidden_by_robots`, `failed`, `redirected`, `off_host`, `not_visited`.
    """

    kind: Literal["crawl"] = Field("crawl", description="What the files are.")
    path: str = Field("", description="WARC file to crawl into; by default one of OUTPUT/crawl.")
    url: str = Field(description="Where to begin; only pages of its host are read.")
    max_pages: int = Field(100, ge=1, description="Stop after so many pages.")
    delay: float = Field(1.0, ge=0, description="Seconds between two requests.")
    max_depth: int = Field(MAX_DEPTH, ge=0, description="Follow so many links in a row at most.")
    agent: str = Field("", description="What the crawler calls itself; by default megalm and its version.")

    _file: str = PrivateAttr("")

    @property
    def gives_pages(self) -> bool:
        """They are."""
        return True

    def set_output(self, output: Path) -> None:
        """Choose the file, another one for each set of pages."""
        pages = repr((self.url, self.max_pages, self.max_depth, self.agent)).encode()
        key = hashlib.blake2b(pages, digest_size=4).hexdigest()
        host = (host_of(self.url) or "site").replace(":", "-")
        self._file = self.path or str(output / "crawl" / f"{host}-{key}.warc.gz")

    def files(self) -> list[InputFile]:
        """The WARC file; crawls the site first where it is missing."""
        if not Path(self._file).exists():
            print(f"megalm: crawling {self.url} into {self._file}", file=sys.stderr)
            counts = crawl(
                self.url, self._file, self.max_pages, self.delay, self.agent or AGENT, self.max_depth
            )
            atomic.write_text(_counts_path(self._file), json.dumps(counts))
        return self._reader().files()

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the pages."""
        yield from self._reader().read(part, counters)
        counts = _counts_path(part.file.path)
        if counts.exists():
            crawled = json.loads(counts.read_text(encoding="utf-8"))
            counters.update({name: count for name, count in crawled.items() if name != "pages"})

    def _reader(self) -> Warc:
        return Warc(path=self._file, name=self.label, max_document_bytes=self.max_document_bytes)


def _counts_path(path: str) -> Path:
    """The file that says what a crawl left out."""
    return Path(f"{path}.json")
