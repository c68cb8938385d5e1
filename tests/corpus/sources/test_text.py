"""Text, books, HTML and code: ids, what a document is, and bounded memory whatever the file."""

import gzip
import tracemalloc

import pytest
import zstandard

from megalm.corpus.pages import raw_page
from megalm.corpus.sources.book import split_chapters
from megalm.errors import UserError
from tests.corpus.sources.reading import read


def texts(documents) -> list[str]:
    return [document.text for document in documents]


def test_directories_patterns_and_files_are_read_in_order_with_names_below_them(tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/b.txt").write_text("b")
    (tmp_path / "in/deep/a.md").write_text("a")
    (tmp_path / "in/no.png").write_text("x")
    (tmp_path / "in/c.txt.gz").write_bytes(gzip.compress(b"c"))
    (tmp_path / "in/d.txt.zst").write_bytes(zstandard.compress(b"d"))
    documents, counters = read("text", tmp_path / "in")
    assert [(d.id, d.text) for d in documents] == [
        ("text/b.txt", "b"),
        ("text/c.txt.gz", "c"),
        ("text/d.txt.zst", "d"),
        ("text/deep/a.md", "a"),
    ]
    assert counters == {}
    assert [d.id for d in read("text", tmp_path / "in/*.txt", name="mine")[0]] == ["mine/b.txt"]
    for missing in ("nothing", "in/*.pdf"):
        with pytest.raises(UserError, match="does not exist"):
            read("text", tmp_path / missing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no files in .*endings looked for: .txt"):
        read("text", tmp_path / "empty")


@pytest.mark.parametrize("cut", [None, 1, 7, 16])
def test_lines_and_paragraphs_are_the_same_however_the_file_is_cut(tmp_path, cut):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\r\nfour\n\n\n  \nfive")
    documents, _ = read("text", tmp_path / "a.txt", cut, sample_by="line")
    assert texts(documents) == ["one", "two", "three", "four", "five"]
    assert len({document.id for document in documents}) == 5
    documents, _ = read("text", tmp_path / "a.txt", cut, sample_by="paragraph")
    assert texts(documents) == ["one\ntwo", "three\r\nfour", "five"]


@pytest.mark.parametrize("sample_by", ["document", "paragraph", "line"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_giant_line_is_counted_within_bounded_memory(tmp_path, sample_by, compressed):
    path = tmp_path / ("a.txt.gz" if compressed else "a.txt")
    data = b"x" * 30_000_000 + b"\n\nshort\n"
    path.write_bytes(gzip.compress(data, 1) if compressed else data)
    tracemalloc.start()
    documents, counters = read("text", path, sample_by=sample_by, max_document_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counters == {"too_large": 1}
    assert texts(documents) == ([] if sample_by == "document" else ["short"])
    assert peak < 8_000_000


def test_a_giant_paragraph_of_short_lines_is_counted_within_bounded_memory(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"0123456789\n" * 1_000_000 + b"\nshort\n")
    tracemalloc.start()
    documents, counters = read("text", tmp_path / "a.txt", sample_by="paragraph", max_document_bytes=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(documents) == ["short"] and counters == {"too_large": 1} and peak < 4_000_000


def test_invalid_utf8_and_damaged_compression_are_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgr\xfc\xdfe")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\ntwo\nthree\n" * 5000)[:-20])
    (tmp_path / "c.txt.zst").write_bytes(b"not compressed")
    documents, counters = read("text", tmp_path)
    assert texts(documents) == ["gr\ufffd\ufffde"] and counters == {"invalid_utf8": 1, "broken": 2}
    documents, counters = read("text", tmp_path / "b.txt.gz", sample_by="line")
    assert len(documents) > 1000 and counters == {"broken": 1}


def test_books_are_split_at_headings_and_nothing_is_lost():
    body = "Some words of the story. " * 40
    book = f"THE TITLE\n\nby Nobody\n\nCHAPTER I. In which\n\n{body}\n\nChapter 2\n\n{body}\n\n# Epilogue\n\n{body}"
    chapters = split_chapters(book, 500)
    assert [chapter[:9] for chapter in chapters] == ["THE TITLE", "Chapter 2", "# Epilogu"]
    assert "".join("".join(chapters).split()) == "".join(book.split())
    assert [chapter[:9] for chapter in split_chapters(book, 0)][1] == "CHAPTER I"
    assert split_chapters("no headings, short", 500) == ["no headings, short"]
    assert split_chapters(" \n", 500) == []
    assert len(split_chapters(f"Chapter of accidents is no heading here. {body}", 0)) == 1


def test_book_chapters_carry_number_and_title(tmp_path):
    body = "Some words of the story. " * 40
    (tmp_path / "b.md").write_text(f"# One\n\n{body}\r\n\n## Two\n\n{body}")
    documents, _ = read("book", tmp_path / "b.md")
    assert [(d.id, d.metadata["chapter"], d.metadata["title"]) for d in documents] == [
        ("book/b.md#0", 0, "One"),
        ("book/b.md#1", 1, "Two"),
    ]


def test_html_files_are_pages_with_urls(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.html").write_bytes(b"<p>\xfc")
    documents, _ = read("html", tmp_path, url="https://example.org/")
    assert raw_page(documents[0]) == (b"<p>\xfc", "text/html")
    assert documents[0].metadata["url"] == "https://example.org/sub/a.html"


def test_code_knows_languages_and_leaves_out_what_is_not_written_by_hand(tmp_path):
    for name in ("a.py", "src/b.cpp", "Makefile", ".git/c.py", "node_modules/d.js", "data.bin", "e.rs"):
        path = tmp_path / "hidden/.cache/tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("code")
    (tmp_path / "hidden/.cache/tree/e.rs").write_bytes(b"\0binary")
    documents, counters = read("code", tmp_path / "hidden/.cache/tree")
    assert [(d.metadata["path"], d.metadata["programming_language"]) for d in documents] == [
        ("Makefile", "makefile"),
        ("a.py", "python"),
        ("src/b.cpp", "c++"),
    ]
    assert counters == {"not_text": 1}
    assert [d.id for d in read("code", tmp_path / "hidden/.cache/tree", languages=["python"])[0]] == [
        "code/a.py"
    ]
