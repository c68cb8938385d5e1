"""Token datasets small enough to check by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from megalm.dataset import IndexedDatasetWriter

WriteDataset = Callable[..., Path]


@pytest.fixture
def write_dataset(tmp_path: Path) -> WriteDataset:
    """A function that writes documents of the given lengths, whose tokens count up from `first`."""

    def write(name: str, lengths: Sequence[int], first: int = 0, dtype: str = "<i4") -> Path:
        with IndexedDatasetWriter(tmp_path / name, np.dtype(dtype)) as writer:
            for length in lengths:
                writer.add_document(np.arange(first, first + length))
                first += length
        return tmp_path / name

    return write


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which the small inputs make several chunks, runs, batches and buckets (in this process only)."""
    monkeypatch.setattr("megalm.dataset.plan.SMALLEST_CHUNK", 4096)
    monkeypatch.setattr("megalm.dataset.plan.LARGEST_CHUNK", 4096)
    monkeypatch.setattr("megalm.dataset.chunks.RUN_TOKENS", 500)
    monkeypatch.setattr("megalm.dataset.chunks.BATCH_CHARACTERS", 700)
    monkeypatch.setattr("megalm.dataset.shuffle.BUCKET_BYTES", 3000)
    monkeypatch.setattr("megalm.dataset.shuffle.ROWS_BYTES", 0)
    monkeypatch.setattr("megalm.dataset.shuffle.LEAST_ROWS", 3)
