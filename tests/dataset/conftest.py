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
