"""How raw pages travel from a source to the step that extracts their text: as bytes beside an empty text."""

from typing import Any

from datatrove.data import Document, Media, MediaType


def page_document(id: str, url: str, payload: bytes, content_type: str, metadata: dict[str, Any]) -> Document:
    """A document that holds a raw page and no text yet; `content_type` is the server's header, perhaps empty."""
    page = Media(
        id=id,
        type=MediaType.DOCUMENT,
        url=url,
        media_bytes=payload,
        metadata={"content_type": content_type},
    )
    return Document(text="", id=id, media=[page], metadata={"url": url, **metadata})


def raw_page(document: Document) -> tuple[bytes, str] | None:
    """The bytes of a raw page and the server's content type (perhaps empty); None once the text is extracted."""
    if not document.media or document.media[0].media_bytes is None:
        return None
    page = document.media[0]
    return page.media_bytes, page.metadata.get("content_type", "")


def set_text(document: Document, text: str) -> None:
    """Put the extracted text in the place of the raw page."""
    document.text = text
    document.media = []
