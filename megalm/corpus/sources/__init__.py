"""Where documents come from: a class a kind of source, imported when a recipe names the kind."""

from importlib import import_module
from typing import TYPE_CHECKING

from megalm.config.suggest import nearest
from megalm.errors import UserError

if TYPE_CHECKING:
    from megalm.corpus.sources.base import Source

KINDS = {
    "warc": "megalm.corpus.sources.warc:Warc",
    "wet": "megalm.corpus.sources.warc:Wet",
    "crawl": "megalm.corpus.sources.crawl:Crawl",
    "commoncrawl": "megalm.corpus.sources.commoncrawl:CommonCrawl",
    "html": "megalm.corpus.sources.html:Html",
    "text": "megalm.corpus.sources.text:PlainText",
    "book": "megalm.corpus.sources.book:Book",
    "jsonl": "megalm.corpus.sources.table:Jsonl",
    "csv": "megalm.corpus.sources.table:Csv",
    "parquet": "megalm.corpus.sources.table:Parquet",
    "code": "megalm.corpus.sources.code:Code",
    "chat": "megalm.corpus.sources.chat:Chat",
}


def source_class(kind: str) -> "type[Source]":
    """The class of sources of `kind`; raises UserError for a kind that is not known."""
    if kind not in KINDS:
        raise UserError(f"unknown kind of source `{kind}`{nearest(kind, KINDS)} (known: {', '.join(KINDS)})")
    module, _, attribute = KINDS[kind].partition(":")
    return getattr(import_module(module), attribute)
