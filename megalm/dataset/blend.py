"""A weighted blend of token datasets, each cut into windows that are taken in random order."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.order import BLOCK, block_quotas, derive_key, locate
from megalm.errors import UserError

logger = logging.getLogger(__name__)


class Blend:
    """Says at which token of which source sample k of a run begins: a pure function of the data, the seed and k.

    Each source is read as a ring of windows that begin at another random phase in every epoch.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str | Path | IndexedDataset, float]],
        window: int,
        least_tokens: int,
        seed: int,
        expected_tokenizer_hash: str | None = None,
    ) -> None:
        """Open `sources`, pairs of a dataset (or its prefix) and its weight; weights need not sum to 1.

        window: tokens from the begin of one sample to the next in file order. Raises UserError for no source, a missing or
        damaged dataset, a wrong weight, a dataset of less than `least_tokens` tokens, or another tokenizer.
        """
        if not sources:
            raise UserError("no training data; name at least one dataset prefix")
        self.datasets = [s if isinstance(s, IndexedDataset) else IndexedDataset(s) for s, _ in sources]
        self.window = window
        self.seed = seed
        for dataset in self.datasets:
            _check_length(dataset, least_tokens)
            _check_tokenizer(dataset, expected_tokenizer_hash)
        self._quotas = block_quotas([weight for _, weight in sources])
        self.windows = np.array([dataset.num_tokens // window for dataset in self.datasets], np.int64)
        """Windows in an epoch of each source."""

    def samples_before_repeats(self) -> int:
        """How many samples, from number 0 on, come before a source gives its first window again."""
        block = int((self.windows // self._quotas).min())  # the blocks before it use no source up
        epoch_B = locate(block * BLOCK + np.arange(BLOCK), self._quotas, self.windows, self.seed).epoch_B
        return block * BLOCK + int(np.argmax(epoch_B > 0))

    def window_starts(self, samples_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the token number in its source at which each sample begins, and the source."""
        source_B, epoch_B, window_B = locate(samples_B, self._quotas, self.windows, self.seed)
        start_B = window_B * self.window
        for row, (source, epoch) in enumerate(zip(source_B.tolist(), epoch_B.tolist(), strict=True)):
            size = self.datasets[source].num_tokens
            start_B[row] = (start_B[row] + _phase(self.seed, source, epoch) % size) % size
        return start_B, source_B


@lru_cache(maxsize=1024)
def _phase(seed: int, source: int, epoch: int) -> int:
    return derive_key("phase", seed, source, epoch) >> 1


def _check_length(dataset: IndexedDataset, least_tokens: int) -> None:
    if dataset.num_tokens < least_tokens:
        raise UserError(
            f"dataset {dataset.prefix} has {dataset.num_tokens} tokens, fewer than one window of "
            f"{least_tokens - 1} + 1; lower seq_length or build it from more text"
        )
    if dataset.dtype.kind not in "iu":
        raise UserError(
            f"dataset {dataset.prefix} holds {dataset.dtype}, not token ids; give a token dataset"
        )


def _check_tokenizer(dataset: IndexedDataset, expected: str | None) -> None:
    if expected is None:
        return
    if dataset.sidecar is None:
        logger.warning("dataset %s has no .json sidecar, so its tokenizer is not checked", dataset.prefix)
    elif dataset.sidecar["tokenizer_hash"] != expected:
        raise UserError(
            f"dataset {dataset.prefix} was made with tokenizer_hash {dataset.sidecar['tokenizer_hash']}, the model "
            f"has {expected}; build the dataset with the model's tokenizer"
        )
