"""The web site that tests crawl."""

from tests.corpus.sources.reading import read

PAGES = {
    "index.html": '<a href="a.html">a</a> <a href="/b.html#part">b</a> <a href="secret/x.html">x</a>'
    '<a href="http://elsewhere.example/">away</a> <a href="mailto:me@x">m</a> <a href="print.pdf">p</a>'
    '<a rel="nofollow" href="unwanted.html">no</a> <a href="missing.html">none</a>',
    "a.html": '<a href="index.html">back</a> <a href="c.html">c</a>',
    "b.html": "the end",
    "c.html": '<meta name="robots" content="noindex, nofollow"><a href="d.html">d</a>',
    "d.html": "nobody may come here",
    "secret/x.html": "secret",
    "unwanted.html": "unwanted",
    "print.pdf": "pdf",
}


def pages_of(path, site) -> list[str]:
    documents, counters = read("warc", path)
    assert counters == {}
    return [document.metadata["url"].removeprefix(f"{site.url}/") for document in documents]


def asked_for(site) -> list[str]:
    return [path.lstrip("/") for path, _ in site.requests]
