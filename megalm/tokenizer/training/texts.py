"""Cuts the inputs of a training into pieces of work, and reads the texts of a piece in blocks of bounded size."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megalm.errors import UserError
from megalm.tokenizer.documents import (
    SampleBy,
    is_compressed,
    open_input,
    read_documents,
    splits_by_line,
    where,
)

BLOCK_BYTES = 1 << 20
SMALLEST_PIECE = 4 << 20
LARGEST_PIECE = 512 << 20
PIECES_AIMED_AT = 1024  # enough for balance and progress
# A cut here changes no word: none reaches over a line's end with no space or other line end beside it.
_CUT = re.compile(r"\S\n(?=\S)")


@dataclass(frozen=True)
class Piece:
    """The documents of a file that begin in bytes [start, stop), the first `budget` bytes of text of them."""

    path: Path
    start: int = 0
    stop: int | None = None
    budget: float | None = None
    """None: all."""
    size: int = 0
    """Bytes of the file, for progress."""


def cut_inputs(files: Sequence[Path], sample_by: SampleBy, sample_bytes: int | None) -> list[list[Piece]]:
    """Bundles of pieces that cover `files`, each a task for a worker; the same for any number of workers.

    sample_bytes: bytes of text to read altogether; every piece has a share by its size.
    """
    sizes = [path.stat().st_size for path in files]
    total = max(sum(sizes), 1)
    step = SMALLEST_PIECE
    while step < LARGEST_PIECE and step * PIECES_AIMED_AT < total:
        step *= 2
    bundles: list[list[Piece]] = []
    room = 0
    for path, size in zip(files, sizes, strict=True):
        starts = (
            range(0, size, step)
            if splits_by_line(path, sample_by) or _is_whole_text(path, sample_by)
            else [0]
        )
        for start in starts:
            stop = start + step if start + step < size and len(starts) > 1 else None
            length = (size if stop is None else stop) - start
            budget = None if sample_bytes is None else sample_bytes * length / total
            if length > room:
                bundles.append([])
                room = step
            bundles[-1].append(Piece(path, start, stop, budget, length))
            room -= length
    return bundles


def texts(piece: Piece, text_key: str, sample_by: SampleBy) -> Iterator[str]:
    """Yield the texts of `piece`, long ones in parts that give the same words."""
    used = 0
    for text in _all_texts(piece, text_key, sample_by):
        yield text
        used += len(text.encode())
        if piece.budget is not None and used >= piece.budget:
            return


def _all_texts(piece: Piece, text_key: str, sample_by: SampleBy) -> Iterator[str]:
    if _is_whole_text(piece.path, sample_by):
        yield from _blocks_of_file(piece)
        return
    for document in read_documents(piece.path, text_key, sample_by, piece.start, piece.stop):
        yield from _blocks_of_text(document.text)


def _is_whole_text(path: Path, sample_by: SampleBy) -> bool:
    """Whether the whole of `path` is one document of text that can be read at any byte."""
    return sample_by == "document" and not is_compressed(path) and not splits_by_line(path, sample_by)


def _blocks_of_text(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > BLOCK_BYTES and (cut := _CUT.search(text, begin + BLOCK_BYTES)):
        yield text[begin : cut.end()]
        begin = cut.end()
    yield text[begin:] if begin else text


def _blocks_of_file(piece: Piece) -> Iterator[str]:
    with open_input(piece.path) as file:
        begin = _first_cut(file, piece.start)
        end = None if piece.stop is None else _first_cut(file, piece.stop)
        file.seek(begin)
        lines: list[bytes] = []
        size = 0
        offset = begin
        while (end is None or offset < end) and (line := file.readline()):
            if size >= BLOCK_BYTES and _is_cut(lines[-1], line):
                yield _decode(piece.path, offset - size, b"".join(lines))
                lines, size = [], 0
            lines.append(line)
            size += len(line)
            offset += len(line)
        yield _decode(piece.path, offset - size, b"".join(lines))


def _first_cut(file: IO[bytes], position: int) -> int:
    """The first place to cut at after `position` (or the beginning, or the end)."""
    if not position:
        return 0
    file.seek(position)
    before = file.readline()
    offset = file.tell()
    while line := file.readline():
        if _is_cut(before, line):
            break
        before, offset = line, offset + len(line)
    return offset


def _is_cut(before: bytes, after: bytes) -> bool:
    end, begin = before[-5:].decode(errors="ignore"), after[:4].decode(errors="ignore")
    return _CUT.match(end[-2:] + begin) is not None


def _decode(path: Path, offset: int, data: bytes) -> str:
    if not offset:
        data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = where(path, offset + error.start)
        raise UserError(f"{place} is not UTF-8 ({error.reason}); convert the file to UTF-8") from error
