"""Text of pages, and hostile pages: a reason key instead of a crash, in bounded time and memory."""

import os
import signal
import subprocess
import sys

import pytest
from datatrove.data import Document

from megalm.corpus.clean.extract import Extract, PageTask, deeper_than, extract_text, limit_memory
from megalm.corpus.pages import page_document, raw_page
from tests.corpus.documents import prose

ARTICLE = "".join(f"<p>{line}</p>" for line in prose(1).split("\n"))
PAGE = f"""<html><head><title>T</title></head><body><nav><ul><li><a href=/>Home</a><li><a href=/b>Contact us</a></ul></nav>
<article><h1>Rivers</h1>{ARTICLE}<img src=x alt="picture text"></article><footer>Copyright imprint</footer></body></html>"""


def run(pages: list[Document], **options: object) -> tuple[list[Document], Extract]:
    step = Extract(Extract.Settings(**options))
    return list(step.run(iter(pages))), step


def page(content: str | bytes, content_type: str = "text/html") -> Document:
    data = content if isinstance(content, bytes) else content.encode()
    return page_document("a", "https://site.example/a", data, content_type, {})


@pytest.mark.parametrize("mode", ["precise", "fast"])
def test_the_article_stays_and_what_is_around_it_goes(mode: str):
    (found,), _ = run([page(PAGE)], mode=mode)
    for line in prose(1).split("\n"):
        assert line in found.text
    for boilerplate in ("Contact us", "imprint", "picture text"):
        assert boilerplate not in found.text
    assert raw_page(found) is None
    assert found.metadata["encoding"] == "utf-8"


def test_pages_in_other_encodings_are_decoded():
    text = PAGE.replace("Rivers", "Flüsse").replace("river", "Fluß")
    (found,), _ = run([page(text.encode("cp1252"), "text/html; charset=iso-8859-1")], mode="fast")
    assert "Fluß" in found.text and found.metadata["encoding"] == "cp1252"


def test_plain_text_is_not_parsed_and_documents_with_text_pass():
    documents = [page("a <b> c\nd", "text/plain; charset=utf-8"), Document(text="as it is", id="b")]
    found, step = run(documents, mode="fast")
    assert [document.text for document in found] == ["a <b> c\nd", "as it is"]
    assert step.tally.documents_out == 2


def test_each_kind_of_useless_page_has_its_reason():
    contents = ["x" * 101, b"\x1f\x8b" + b"z" * 50, "<html></html>", "<div>" * 30 + "deep"]
    found, step = run([page(content) for content in contents], mode="fast")
    assert [document.text for document in found] == ["x" * 101, "deep"]
    assert step.tally.removed == {"extract.not_text": 1, "extract.empty": 1}
    _, step = run([page(content) for content in contents], mode="fast", max_bytes=100)
    assert step.tally.removed["extract.too_large"] == 2


def test_hundred_thousand_nested_tags_are_refused_before_the_parser_sees_them():
    hostile = page("<html>" + "<div>" * 100_000 + "text" + "</div>" * 100_000)
    for mode in ("fast", "precise"):
        _, step = run([hostile], mode=mode)
        assert step.tally.removed == {"extract.too_deep": 1}
        hostile = page("<html>" + "<b>" * 100_000 + "text")


def test_elements_that_need_no_end_do_not_count_as_nested():
    assert not deeper_than("<p>a<br><li>b" * 50_000, 2000)
    assert not deeper_than("<div><span>a</span></div>" * 50_000, 2000)
    assert deeper_than("<i>" * 20_000 + "</i>" * 20_000, 2000)


def test_a_page_on_which_the_parser_hangs_costs_its_time_limit_and_the_next_page_is_well():
    attributes = " ".join(f"a{number}=1" for number in range(200_000))
    pages = [page(f"<html><body><div {attributes}>text</div>"), page(PAGE)]
    found, step = run(pages, mode="fast", timeout=2.0)
    assert step.tally.removed == {"extract.timeout": 1}
    assert len(found) == 1 and "river" in found[0].text.lower()


class Dying(PageTask):
    """A page that takes the process with it."""

    def __call__(self, payload: bytes, content_type: str) -> tuple[str, str, str | None]:
        if payload == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(payload, content_type)


def test_a_page_that_kills_the_process_is_counted_and_the_next_is_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("megalm.corpus.clean.extract.PageTask", Dying)
    found, step = run([page("die"), page(PAGE)], mode="fast", timeout=2.0)
    assert step.tally.removed == {"extract.crashed": 1}
    assert len(found) == 1


def test_memory_is_limited_in_the_process_of_the_page():
    child = os.fork()
    if not child:
        limit_memory(64 << 20)
        try:
            bytearray(128 << 20)
        except MemoryError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_page_that_needs_too_much_memory_is_removed():
    # In an interpreter of its own: what earlier tests left free in this one's heap would satisfy the page.
    script = """
from tests.corpus.clean.test_extract import page, run
_, step = run([page("<html><body>" + "<p>lorem ipsum dolor</p>" * 200_000)], mode="fast", max_memory_mib=64)
print("removed", *step.tally.removed.elements())
"""
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert said.strip() in {f"removed extract.{reason}" for reason in ("memory", "crashed", "failed")}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 10_000,
        b"<" * 100_000,
        b"<!--" * 10_000,
        bytes(range(256)) * 100,
        b"\xff\xfe" + b"<p>" * 99,
    ],
)
@pytest.mark.parametrize("mode", ["fast", "precise"])
def test_broken_bytes_never_raise(mode: str, content: bytes):
    _, _, reason = PageTaskHere(Extract.Settings(mode=mode))(content, "text/html")
    assert reason is None or reason.startswith("extract.")


class PageTaskHere(PageTask):
    """The work on a page in the test's own process, with no limit of memory."""

    def __init__(self, settings: Extract.Settings):
        super().__init__(settings)
        self.limited = True


def test_extract_text_of_nothing_is_empty():
    assert extract_text("", "precise") == "" == extract_text("", "fast")
