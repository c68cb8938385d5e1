"""Compressed files are read to their end, all frames, and one that is cut anywhere is an error and never a shorter text."""

import io
import random
import struct

import pytest
import zstandard

from megalm.zst import open_zst

DATA = random.Random(0).randbytes(40_000).hex().encode()
FRAME = zstandard.compress(DATA)
SKIPPED = struct.pack("<II", 0x184D2A50, 3) + b"abc"  # a frame that is no data (RFC 8878, 3.1.2)


@pytest.mark.parametrize(
    ("compressed", "expected"),
    [
        (b"", b""),
        (FRAME, DATA),
        (FRAME + FRAME, DATA * 2),
        (SKIPPED + FRAME + SKIPPED + zstandard.compress(b"") + FRAME, DATA * 2),
    ],
)
@pytest.mark.parametrize("size", [1000, -1])
def test_all_frames_are_read(compressed, expected, size):
    file = open_zst(io.BytesIO(compressed))
    assert b"".join(iter(lambda: file.read(size), b"")) == expected


@pytest.mark.parametrize("cut", [1, 5, 4096, len(FRAME) // 2, len(FRAME) - 1])
def test_a_file_that_is_cut_short_is_an_error(cut):
    with pytest.raises(EOFError, match="cut short"):
        open_zst(io.BytesIO(FRAME + FRAME[:cut])).read()


def test_what_is_no_frame_is_an_error():
    with pytest.raises(zstandard.ZstdError):
        open_zst(io.BytesIO(FRAME + b"junk")).read()


def test_a_frame_that_stands_for_much_is_read_in_bounded_steps():
    zeros = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(zeros) > 4096
    file = open_zst(io.BytesIO(zeros))
    assert file.raw.readinto(bytearray(10)) == 10
    assert len(file.raw._data) <= 128 << 20
