"""The step `extract`: the text of a page's main part, found in a process of its own that hostile pages can at most kill."""

import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.extractors.base import ExtractorSandbox
from pydantic import Field

from megalm.config.section import Section
from megalm.corpus.clean.encoding import decode
from megalm.corpus.pages import raw_page, set_text
from megalm.corpus.step import Transform

Mode = Literal["precise", "fast"]

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
# Elements without content, and those that a sibling or a parent's end closes.
_NOT_NESTING = frozenset(
    "area base br col embed hr img input link meta param source track wbr "
    "p li dt dd tr td th thead tbody tfoot option optgroup colgroup rt rp".split()
)
_NOT_TEXT = (b"\x1f\x8b", b"PK\x03\x04", b"%PDF", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"\x7fELF")
_TAGS_WORTH_COUNTING = 10_000


class Extract(Transform):
    """Puts the text of the page's main part, without navigation and advertisements, in the place of the raw page.

    `precise` is trafilatura, `fast` is resiliparse without links and alternative texts. Both work in a process of
    their own with a limit of time and memory. Documents that hold no raw page pass unchanged.
    """

    name = "extract"

    class Settings(Section):
        """Options of the step `extract`."""

        mode: Mode = Field(
            "precise",
            description="precise: trafilatura; fast: resiliparse, several times faster, less exact.",
        )
        max_bytes: int = Field(10_000_000, ge=1, description="Remove pages with more bytes.")
        max_depth: int = Field(
            2000,
            ge=1,
            description="Remove pages with elements nested deeper: parsers' time grows with its square.",
        )
        timeout: float = Field(20.0, gt=0, description="Seconds for one page, after which it is removed.")
        max_memory_mib: int = Field(
            2048, ge=64, description="Memory in MiB that one page may need, beyond which it is removed."
        )

    settings: Settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Yield the documents with their text."""
        self._task = PageTask(self.settings)
        with ExtractorSandbox(self.settings.timeout, warmup_text=(b"", "")) as self._sandbox:
            yield from super().run(data, rank, world_size)

    def start(self) -> None:
        """Load the extractor before the process is split off, so that another start is cheap."""
        load(self.settings.mode)

    def change(self, document: Document) -> str | None:
        """Extract; a page that is too large, too deep, too slow, not text or without text is removed."""
        page = raw_page(document)
        if page is None:
            return None
        payload, content_type = page
        text = ""
        reason = refuse(payload, self.settings.max_bytes)
        if reason is None:
            text, encoding, reason = self._extract(payload, content_type)
            if encoding:
                document.metadata["encoding"] = encoding
        set_text(document, text)
        if reason is None:
            self.observe("characters", len(text))
        return reason

    def _extract(self, payload: bytes, content_type: str) -> tuple[str, str, str | None]:
        try:
            return self._sandbox.process_document((payload, content_type), self._task)
        except TimeoutError:
            return "", "", "extract.timeout"
        except (EOFError, OSError):
            return "", "", "extract.crashed"


class PageTask:
    """What the process does with a page: decode, look at the depth, extract; the first call sets the memory limit."""

    def __init__(self, settings: Extract.Settings):
        self.settings = settings
        self.limited = False

    def __call__(self, payload: bytes, content_type: str) -> tuple[str, str, str | None]:
        """The text, the encoding, and a reason where there is no text."""
        if not self.limited:
            limit_memory(self.settings.max_memory_mib << 20)
            self.limited = True
        try:
            page, encoding = decode(payload, content_type)
            if is_plain_text(content_type):
                text = page
            elif deeper_than(page, self.settings.max_depth):
                return "", encoding, "extract.too_deep"
            else:
                text = extract_text(page, self.settings.mode)
        except MemoryError:
            return "", "", "extract.memory"
        except Exception:
            return "", "", "extract.failed"
        return text, encoding, None if text and not text.isspace() else "extract.empty"


def load(mode: Mode) -> None:
    """Import the library behind `mode`."""
    extract_text("<p>", mode)


def extract_text(page: str, mode: Mode) -> str:
    """The text of the main part of the HTML `page`, empty if there is none."""
    if mode == "fast":
        from resiliparse.extract.html2text import extract_plain_text

        return extract_plain_text(
            page, main_content=True, alt_texts=False, links=False, comments=False, post_meta=False
        )
    from trafilatura import extract

    return extract(page, favor_precision=True, include_comments=False) or ""


def refuse(payload: bytes, max_bytes: int) -> str | None:
    """A reason not to parse these bytes at all."""
    if len(payload) > max_bytes:
        return "extract.too_large"
    if payload.startswith(_NOT_TEXT):
        return "extract.not_text"
    return None


def is_plain_text(content_type: str) -> bool:
    """Whether the server called it text without markup."""
    return content_type.split(";")[0].strip().lower() == "text/plain"


def deeper_than(page: str, max_depth: int) -> bool:
    """Whether elements are nested more than `max_depth` deep."""
    if page.count("<") <= max(max_depth, _TAGS_WORTH_COUNTING):
        return False
    depth = 0
    for close, name in _TAG.findall(page):
        if name.lower() in _NOT_NESTING:
            continue
        depth += -1 if close else 1
        if depth > max_depth:
            return True
    return False


def limit_memory(bytes_more: int) -> None:
    """Let this process take `bytes_more` beyond what it has; more raises MemoryError. Linux alone keeps such limits."""
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        return
    pages = int(sizes.read_text().split()[0])
    limit = pages * resource.getpagesize() + bytes_more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
