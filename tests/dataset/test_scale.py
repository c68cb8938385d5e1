"""10^12 tokens: opening and the first batch take memory that does not depend on the size (sparse files on disk)."""

import errno
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import TokenStream
from megalm.dataset.indexed import HEADER, MAGIC

TOKENS = 10**12
SEQ_LENGTH = 4096


def write_sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        try:
            file.truncate(size)
        except OSError as error:
            if error.errno == errno.EFBIG:
                pytest.skip("this file system holds no file of 2 TB")
            raise
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


def write_index(prefix: Path, documents: int) -> None:
    """An index of `documents` equal documents; where they are many, only the entries that a search can meet."""
    length = TOKENS // documents
    pointers_at = HEADER.size + 4 * documents
    borders_at = pointers_at + 8 * documents
    pieces = {0: HEADER.pack(MAGIC, 1, 8, documents, documents + 1)}
    for step in range(64):
        # Binary search meets i * documents / 2^k first; the rest stays zero, which the reader must not touch.
        for document in {documents >> step, documents - (documents >> step)}:
            pieces[borders_at + 8 * document] = np.array([document], "<i8").tobytes()
            if document < documents:
                pieces[HEADER.size + 4 * document] = np.array([length], "<i4").tobytes()
                pieces[pointers_at + 8 * document] = np.array([2 * length * document], "<i8").tobytes()
    if documents < 1000:
        pieces[HEADER.size] = np.full(documents, length, "<i4").tobytes()
        pieces[pointers_at] = (np.arange(documents, dtype="<i8") * 2 * length).tobytes()
        pieces[borders_at] = np.arange(documents + 1, dtype="<i8").tobytes()
    last = documents - 1
    pieces[HEADER.size + 4 * last] = np.array([length], "<i4").tobytes()
    pieces[pointers_at + 8 * last] = np.array([2 * length * last], "<i8").tobytes()
    pieces[borders_at + 8 * last] = np.array([last], "<i8").tobytes()
    write_sparse(Path(f"{prefix}.idx"), borders_at + 8 * (documents + 1), pieces)


def peak_memory_of_first_batch(prefix: Path, reset: bool) -> int:
    samples = np.array([0, 1, 10**6, 10**8 + 7, 243 * 10**6])
    tracemalloc.start()
    try:
        stream = TokenStream([(prefix, 1)], SEQ_LENGTH, seed=0, reset_at_document_end=reset)
        batch = stream.batch(samples)
        assert stream.windows.tolist() == [TOKENS // SEQ_LENGTH]
        assert batch.tokens_BS.shape == (len(samples), SEQ_LENGTH)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("documents", [500, 10**9])
@pytest.mark.parametrize("reset", [False, True])
def test_first_batch_of_a_trillion_tokens_takes_a_few_megabytes(tmp_path, documents, reset):
    prefix = tmp_path / "huge"
    write_sparse(Path(f"{prefix}.bin"), 2 * TOKENS, {2 * TOKENS - 2: b"\x07\x00"})
    write_index(prefix, documents)
    on_disk = sum(os.stat(f"{prefix}{suffix}").st_blocks * 512 for suffix in (".bin", ".idx"))
    assert on_disk < 4 << 20
    assert peak_memory_of_first_batch(prefix, reset) < 4 << 20
