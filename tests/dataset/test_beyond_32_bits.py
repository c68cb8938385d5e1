"""Files of more than 4 GiB, whose offsets need more than 32 bits: read, merged, split and verified (sparse on disk)."""

from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, IndexedDatasetWriter, TokenStream, merge, split, verify
from megalm.dataset.pack_stream import PackStream
from megalm.errors import UserError

LONG = 1 << 29  # tokens of 2 bytes: 1 GiB
TAIL = [700, 1, 30_000, 12]
LENGTHS = [LONG, LONG - 1, LONG, LONG + 5, *TAIL]


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four documents of zeros, 4 GiB and more together, and short ones whose ids count up."""
    folder: Path = tmp_path_factory.mktemp("large")
    with IndexedDatasetWriter(folder / "a", np.dtype("<u2")) as writer:
        nothing = np.zeros(max(LENGTHS), np.uint16)
        for length in LENGTHS[:4]:
            writer.add_document(nothing[:length])
        for length in TAIL:
            writer.add_document(np.arange(1, length + 1))
    assert (folder / "a.bin").stat().st_size > 1 << 32
    return folder / "a"


def tail_of(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset[number].tolist() for number in range(-len(TAIL), 0)]


EXPECTED = [list(range(1, length + 1)) for length in TAIL]


def test_tokens_beyond_4_gib_are_read_and_training_finds_them(large):
    assert on_disk(large.parent) < 1 << 20
    dataset = IndexedDataset(large)
    assert tail_of(large) == EXPECTED
    assert int(dataset.sequence_pointers[-1]) > 1 << 32
    first = sum(LENGTHS[:4])
    places = first + np.cumsum([0, *TAIL[:-1]])
    assert dataset.document_at(places).tolist() == [4, 5, 6, 7]
    assert dataset.document_at(places - 1).tolist() == [3, 4, 5, 6]
    packs = PackStream([(large, 1)], 40_000, seed=0, long_documents="drop")
    assert sorted(piece.document for piece in packs.pieces(0)) == [4, 6, 7]
    assert packs.batch(np.arange(1)).labels_BS.max() == 30_000
    windows = TokenStream([(large, 1)], 1 << 22, seed=0, reset_at_document_end=True)
    wanted = [k for k in range(windows.windows[0]) if any(p.document == 6 for p in windows.pieces(k))]
    assert wanted and windows.batch(np.array(wanted[:1])).tokens_BS.max() > 700


@pytest.mark.slow
def test_files_beyond_4_gib_are_merged_split_and_verified(large, tmp_path):
    with IndexedDatasetWriter(tmp_path / "small", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(9))
    merge([tmp_path / "small", large], tmp_path / "m")
    assert tail_of(tmp_path / "m") == EXPECTED
    assert int(IndexedDataset(tmp_path / "m").sequence_pointers[5]) == 2 * sum(LENGTHS[:4]) + 18
    split(tmp_path / "m", tmp_path / "s", documents=[1])
    for suffix in ("idx", "crc"):
        assert (tmp_path / f"s_valid.{suffix}").read_bytes() == Path(f"{large}.{suffix}").read_bytes()
    assert tail_of(tmp_path / "s_valid") == EXPECTED
    assert on_disk(tmp_path) < 1 << 20
    assert verify(tmp_path / "s_valid")["verified"]
    with open(tmp_path / "s_valid.bin", "r+b") as file:
        file.seek(2 * (sum(LENGTHS[:4]) + 800))
        file.write(b"\x07")
    with pytest.raises(UserError, match=r"document 6 \(bytes 42949\d+ to 4295\d+\) has CRC-32"):
        verify(tmp_path / "s_valid")
