"""Books as text or Markdown files: a document is a chapter."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from datatrove.data import Document
from pydantic import Field

from megalm.corpus.sources.base import Part, Source, decode, read_whole

_NUMBER = (
    r"(?:[0-9]+|[IVXLCDM]+|(?:THE )?[A-Z]+(?:TY|TH|ST|ND|RD|EEN|NE|WO|EE|UR|VE|IX|EN|HT|VEN|LVE)(?:-[A-Z]+)?)"
)
_HEADING = re.compile(
    rf"^(?:#{{1,3}} +\S.*|(?:CHAPTER|BOOK|PART|VOLUME|LETTER|ACT) +{_NUMBER}\b.{{0,80}}|(?:PROLOGUE|EPILOGUE|PREFACE|INTRODUCTION)\.?)[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)


class Book(Source):
    """Books in text or Markdown: split at Markdown headings and at lines such as "CHAPTER IV" or "Book 2"."""

    kind: Literal["book"] = Field("book", description="What the files are.")
    min_characters: int = Field(
        500, ge=0, description="A chapter with less text (a title page, contents) is joined to the next."
    )
    suffixes = (".txt", ".text", ".md", ".markdown")

    def read(self, part: Part, counters: Counter[str]) -> Iterator[Document]:
        """Yield the chapters of a book in order."""
        data = read_whole(part.file.path, self.max_document_bytes, counters)
        if data is None:
            return
        text = decode(data, counters).replace("\r\n", "\n")
        for number, chapter in enumerate(split_chapters(text, self.min_characters)):
            title = chapter.partition("\n")[0].strip("# \t")
            metadata = {"path": part.file.name, "chapter": number, "title": title[:200]}
            yield self.document(part.file, number, chapter, metadata)


def split_chapters(text: str, min_characters: int) -> list[str]:
    """Cut `text` before each heading; nothing but blank ends is lost."""
    starts = [0, *(match.start() for match in _HEADING.finditer(text)), len(text)]
    chapters: list[str] = []
    begin = 0
    for start in starts[1:]:
        if start - begin >= min_characters or start == len(text):
            chapters.append(text[begin:start])
            begin = start
    if len(chapters) > 1 and len(chapters[-1]) < min_characters:
        chapters[-2:] = ["".join(chapters[-2:])]
    return [chapter.strip() for chapter in chapters if chapter.strip()]
