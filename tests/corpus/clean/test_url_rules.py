"""Blocked domains, subdomains and paths, near-misses that stay, and words in addresses."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from megalm.corpus.clean.url_index import address, build_index, key
from megalm.corpus.clean.url_rules import UrlBlocklist, UrlWords
from megalm.errors import UserError
from tests.corpus.documents import document


def make(tmp_path: Path, files: dict[str, str], **options: object) -> UrlBlocklist:
    folder = tmp_path / "lists"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    settings = {"packaged": False, "cache": tmp_path / "cache", "lists": [folder]} | options
    step = UrlBlocklist(UrlBlocklist.Settings(**settings))
    step.start()
    return step


LISTS = {
    "adult.domains.txt": "# comment\n\nbad.example\nWWW.Worse.example\nmünchen.example\n10.0.0.7\n0.0.9\n",
    "malware.urls.txt.gz": "site.example/virus\nhttp://site.example/a%20b/page?id=1\nsub.deep.example",
}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://bad.example/", "domain"),
        ("https://user:x@BAD.example.:8080/any?q#f", "domain"),
        ("https://www.bad.example/page", "domain"),
        ("https://worse.example", "domain"),
        ("http://m.bad.example/x", "subdomain"),
        ("http://a.b.sub.deep.example/", "subdomain"),
        ("http://xn--mnchen-3ya.example/", "domain"),
        ("http://10.0.0.7/x", "domain"),
        ("http://site.example/virus", "path"),
        ("http://site.example/virus/", "path"),
        ("https://www.site.example/virus/a/b.html?x=1", "path"),
        ("http://site.example/a b/page?id=1", "path"),
        # near-misses
        ("http://notbad.example/", None),
        ("http://bad.example.org/", None),
        ("http://example/bad.example", None),
        ("http://site.example/", None),
        ("http://site.example/viruses", None),
        ("http://site.example/a/virus", None),
        ("http://site.example/a b/page?id=2", None),
        ("http://site.example/a b/page", None),
        ("http://deep.example/", None),
        ("http://1.10.0.0.7.example/", None),
        ("http://10.0.0.9/", None),
        ("http://other.example/?u=http://bad.example/", None),
    ],
)
def test_addresses(tmp_path: Path, url: str, reason: str | None):
    it = document("", url=url)
    assert make(tmp_path, LISTS).apply(it) == (f"url_blocklist.{reason}" if reason else None)
    if reason:
        assert it.metadata["blocklist"] in ("adult", "malware")


def test_each_rule_can_be_switched_off_and_hits_are_counted_by_list(tmp_path: Path):
    step = make(tmp_path, LISTS)
    step.apply(document("", url="http://m.bad.example/"))
    step.apply(document("", url="http://site.example/virus"))
    assert step.tally.counters == {"list.adult": 1, "list.malware": 1}
    assert make(tmp_path, LISTS, subdomain=False).apply(document("", url="http://m.bad.example/")) is None
    assert make(tmp_path, LISTS, path=False).apply(document("", url="http://site.example/virus")) is None


@pytest.mark.parametrize(
    "url", [None, "", "http://", "http://[::1", "::::", "x" * 100_000, "http://" + "a." * 5000, "\ud800"]
)
def test_odd_addresses_pass(tmp_path: Path, url: str | None):
    assert make(tmp_path, LISTS).apply(document("", url=url)) is None


def test_lists_are_made_into_one_array_once_and_again_when_they_change(tmp_path: Path):
    make(tmp_path, LISTS)
    (index,) = (tmp_path / "cache").glob("*.npy")
    entries = np.load(index)
    assert len(entries) == 8 and (np.diff(entries) > 0).all()
    before = index.stat().st_mtime_ns
    make(tmp_path, LISTS)
    (tmp_path / "lists" / "adult.domains.txt").write_text("new.example\nother.example")
    assert index.stat().st_mtime_ns == before
    path, names = build_index(sorted((tmp_path / "lists").iterdir()), tmp_path / "cache")
    assert path != index and names == ["adult", "malware"]


def test_archives_of_lists_are_read(tmp_path: Path):
    archive = tmp_path / "lists.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        info = tarfile.TarInfo("domains")
        info.size = len(b"packed.example\n")
        file.addfile(info, io.BytesIO(b"packed.example\n"))
    step = make(tmp_path, {}, lists=[archive])
    assert step.apply(document("", url="http://packed.example/")) == "url_blocklist.domain"


def test_missing_lists_are_a_users_mistake(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        make(tmp_path, {}, lists=[tmp_path / "none.txt"])
    with pytest.raises(UserError, match="no list"):
        make(tmp_path, {})


def test_addresses_have_one_form():
    assert address("HTTPS://www.A.example:80/b%20c/?q=1#d") == ("a.example", "/b c", "q=1")
    assert key("a.example") != key("b.example")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://site.example/my-badword-page", "word"),
        ("http://site.example/badwords", None),
        ("http://soft-a.example/softb", "soft_words"),
        ("http://soft-a.example/", None),
        ("http://site.example/aa-sub.pa_rt", "part"),
        ("http://site.example/subpa", None),
    ],
)
def test_words_in_addresses(url: str, reason: str | None):
    settings = UrlWords.Settings(words=["BadWord"], soft_words=["soft", "softb"], parts=["subpart"])
    step = UrlWords(settings)
    step.start()
    assert step.apply(document("", url=url)) == (f"url_words.{reason}" if reason else None)


def test_packaged_words_and_empty_lists_work():
    step = UrlWords()
    step.start()
    assert step.apply(document("", url="https://news.example/politics/article")) is None
    assert step.apply(document("")) is None
    step = UrlWords(UrlWords.Settings(words=[], soft_words=[], parts=[]))
    step.start()
    assert step.apply(document("", url="http://any.example/")) is None
