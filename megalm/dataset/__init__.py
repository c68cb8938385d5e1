"""Token ids on disk and deterministic batches of them; imports no torch."""

from megalm.dataset.build import build_dataset
from megalm.dataset.cursor import Cursor
from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.inspect import info, show, verify
from megalm.dataset.merging import merge
from megalm.dataset.pack_stream import PackStream
from megalm.dataset.recipe import Extras
from megalm.dataset.shares import Budget
from megalm.dataset.splitting import split
from megalm.dataset.stream import Batch, TokenStream
from megalm.dataset.writer import IndexedDatasetWriter

__all__ = [
    "Batch",
    "Budget",
    "Cursor",
    "Extras",
    "IndexedDataset",
    "IndexedDatasetWriter",
    "PackStream",
    "TokenStream",
    "build_dataset",
    "info",
    "merge",
    "show",
    "split",
    "verify",
]
