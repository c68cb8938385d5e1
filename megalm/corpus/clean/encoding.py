"""Bytes of a page to text: which encoding they are in, by what they say and by what they are."""

import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_HEADER = re.compile(r"charset\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.IGNORECASE)
_META = re.compile(rb"<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*[\"']?\s*([\w:.-]{1,40})", re.I)
_DECLARATION_BYTES = 4096
_DETECTION_BYTES = 1 << 16
# 7-bit encodings look like ASCII, so that only a declaration tells them.
_SEVEN_BIT = ("iso2022_jp",)


def decode(data: bytes, content_type: str = "") -> tuple[str, str]:
    """Return the text of `data` and the name of its encoding; bytes that do not fit become U+FFFD.

    In this order: a byte order mark; UTF-8, if all bytes are valid UTF-8 (hardly ever true of another encoding,
    while declarations are often wrong); the charset of the HTTP header `content_type`; that of the page; what
    the bytes look like. Labels mean what the WHATWG Encoding Standard says, as in browsers: "latin1" is
    windows-1252. The name is Python's.
    """
    for mark, name in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(name, "replace"), name
    declared = _declared(data, content_type)
    if declared not in _SEVEN_BIT:
        try:
            return data.decode("utf-8"), "utf-8"
        except UnicodeDecodeError as error:
            if (
                error.end >= len(data) - 4 or declared == "utf-8"
            ):  # cut within a character, or a few bad bytes
                return data.decode("utf-8", "replace"), "utf-8"
    for guess in declared, _known(detect_encoding(data[:_DETECTION_BYTES])):
        if guess is not None:
            try:
                return data.decode(guess), guess
            except UnicodeDecodeError:
                continue
    name = declared or "utf-8"
    return data.decode(name, "replace"), name


def _declared(data: bytes, content_type: str) -> str | None:
    header = _HEADER.search(content_type)
    if header and (name := _known(header[1])):
        return name
    meta = _META.search(data, 0, _DECLARATION_BYTES)
    name = _known(meta[1].decode("ascii", "ignore")) if meta else None
    # A page whose declaration could be read as ASCII is not in UTF-16.
    return "utf-8" if name and name.startswith("utf-16") else name


def _known(label: str | None) -> str | None:
    name = map_encoding_to_html5(label, False) if label else None
    if name is None:
        return None
    try:
        b"".decode(name)
    except LookupError:
        return None
    return name
