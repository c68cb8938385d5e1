"""A site as a source of a recipe: crawled once, on after a kill, and not again for other steps."""

import pytest

from megalm.corpus import crawl as crawler
from megalm.corpus.build import build_corpus
from megalm.corpus.shards import read_shard, shard_paths
from megalm.errors import UserError
from tests.corpus.recipes import documents_of, make_recipe
from tests.corpus.sources.mirror import serving
from tests.kills import killed

PAGES = {
    "index.html": '<a href="a.html">a</a> <a href="b.html">b</a> <a href="hidden.html">h</a> <a href="none.html">n</a>',
    "a.html": "<p>the first page has words",
    "b.html": "<p>the second page has some, too",
    "hidden.html": "<p>for people",
}


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "site").mkdir()
    for name, text in PAGES.items():
        (tmp_path / "site" / name).write_text(f"<html><body>{text}</body></html>")
    (tmp_path / "site" / "robots.txt").write_text("User-agent: *\nDisallow: /hidden\n")
    with serving(tmp_path / "site") as server:
        yield server


def recipe_of(site, output, minimum: int = 1, **options):
    source = {"kind": "crawl", "url": f"{site.url}/index.html", "delay": 0, **options}
    steps = [{"extract": {"mode": "fast"}}, {"length": {"min_characters": minimum}}]
    return make_recipe(output, output, steps, sources=[source], tasks=2)


def texts_of(output) -> list[str]:
    return [
        document.text.strip() for path in shard_paths(output / "documents") for document in read_shard(path)
    ]


def test_a_recipe_crawls_its_site_and_reports_what_was_left_out(site, tmp_path, capsys):
    report = build_corpus(recipe_of(site, tmp_path / "out"))
    assert texts_of(tmp_path / "out")[1:] == ["the first page has words", "the second page has some, too"]
    (source,) = report["sources"]
    assert source["step"] == "crawl" and source["documents_out"] == 3
    counted = {name: count for name, count in source["counters"].items() if count}
    assert counted == {"failed": 1, "forbidden_by_robots": 1}
    (warc,) = (tmp_path / "out/crawl").glob("*.warc.gz")
    assert f"crawling {site.url}/index.html into {warc}" in capsys.readouterr().err


def test_other_steps_use_the_same_crawl_and_other_pages_need_another(site, tmp_path):
    build_corpus(recipe_of(site, tmp_path / "out"))
    asked = len(site.requests)
    with pytest.raises(UserError, match="min_characters was 1 and is 27"):
        build_corpus(recipe_of(site, tmp_path / "out", minimum=27))
    build_corpus(recipe_of(site, tmp_path / "out", minimum=27), overwrite=True)
    assert (
        texts_of(tmp_path / "out")[-1:] == ["the second page has some, too"] and len(site.requests) == asked
    )
    with pytest.raises(UserError, match="max_pages was 100 and is 1"):
        build_corpus(recipe_of(site, tmp_path / "out", max_pages=1))
    assert len(site.requests) == asked, "a recipe that is refused must not ask the site"
    build_corpus(recipe_of(site, tmp_path / "out", max_pages=1), overwrite=True)
    assert len(site.requests) > asked and len(list((tmp_path / "out/crawl").glob("*.warc.gz"))) == 2


def test_a_crawl_that_was_killed_goes_on(site, tmp_path):
    recipe = recipe_of(site, tmp_path / "out")
    assert killed(crawler._Crawler, "_store", 2, lambda: build_corpus(recipe))
    before = [path for path, _ in site.requests]
    build_corpus(recipe)
    again = [path for path, _ in site.requests][len(before) :]
    assert "/index.html" not in again and "/b.html" in again and len(texts_of(tmp_path / "out")) == 3
    first = documents_of(tmp_path / "out")
    build_corpus(recipe)
    assert documents_of(tmp_path / "out") == first


def test_two_crawls_into_one_file_are_refused(site, tmp_path):
    import fcntl

    with open(tmp_path / "site.warc.gz.partial", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another crawl is writing"):
            crawler.crawl(f"{site.url}/index.html", tmp_path / "site.warc.gz")
