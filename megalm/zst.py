"""Reads .zst files, and tells where one is cut short: the library's own reader ends there without a word."""

import io
from typing import IO, Any

import zstandard

# 4 bytes of a hostile file may stand for 128 KiB, so that a step's output is at most 128 MiB
COMPRESSED_AT_ONCE = 4096
BUFFER = 1 << 20


def open_zst(file: IO[bytes]) -> io.BufferedReader:
    """Return the uncompressed bytes of `file`, all of its frames.

    Reading raises EOFError where the file ends within a frame, and zstandard.ZstdError where it is damaged.
    """
    return io.BufferedReader(_Frames(file), BUFFER)


class _Frames(io.RawIOBase):
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None
        """Decompresses the frame that has begun; None between frames."""
        self._compressed = b""
        self._data = memoryview(b"")

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._data and self._take():
            pass
        size = min(len(self._data), len(buffer))
        buffer[:size] = self._data[:size]
        self._data = self._data[size:]
        return size

    def _take(self) -> bool:
        """Decompress a little more; False at the end of the file."""
        compressed = self._compressed or self._file.read(COMPRESSED_AT_ONCE)
        if not compressed:
            if self._frame is not None:
                raise EOFError("it is cut short: it ends within a zstd frame")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._data = memoryview(self._frame.decompress(compressed))
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True
