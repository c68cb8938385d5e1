"""A blend of token datasets whose samples come in random order, by weights or budgets."""

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.indexed import IndexedDataset
from megalm.dataset.order import Location, derive_key, locate
from megalm.dataset.shares import Budget, Share, Shares, by_budget, by_weight
from megalm.errors import UserError

logger = logging.getLogger(__name__)

Source = tuple[str | Path | IndexedDataset, Share]
"""A dataset (or its prefix) and its weight or budget; weights need not sum to 1."""


class Blend:
    """Says which sample of which source sample k of a run is: a pure function of the data, the seed and k."""

    shares: Shares
    windows: NDArray[np.int64]
    """Samples in an epoch of each source."""
    samples_in_budget: int | None = None
    """How many samples use the sources' budgets up; None where they have weights."""
    in_full = False
    """Whether a validation takes all samples once."""

    def __init__(
        self, sources: Sequence[Source], seed: int, expected_tokenizer_hash: str | None = None
    ) -> None:
        """Open `sources`; UserError for none, a missing or damaged dataset or another tokenizer."""
        if not sources:
            raise UserError("no training data; name at least one dataset prefix")
        self.datasets = [s if isinstance(s, IndexedDataset) else IndexedDataset(s) for s, _ in sources]
        self.seed = seed
        for dataset in self.datasets:
            _check_ids_are_whole(dataset)
            _check_tokenizer(dataset, expected_tokenizer_hash)

    def share_out(self, shares: Sequence[Share], windows: Sequence[int], tokens: int) -> None:
        """Set what each source gives: it has so many `windows`, each counted as so many `tokens`.

        Raises UserError for weights or budgets that do not fit, and where some sources have the one and some the other."""
        self.windows = np.array(windows, np.int64)
        names = [str(dataset.prefix) for dataset in self.datasets]
        budgets = [share for share in shares if isinstance(share, Budget)]
        if not budgets:
            self.shares = by_weight([share for share in shares if not isinstance(share, Budget)])
        elif len(budgets) < len(shares):
            raise UserError(
                "some sources of the blend have a budget and some a weight: give all of them the same kind"
            )
        else:
            self.shares = by_budget(budgets, windows, tokens, names)
            self.samples_in_budget = self.shares.total

    def locate(self, samples_B: NDArray[np.int64]) -> Location:
        """Return source, epoch and window of each sample."""
        return locate(samples_B, self.shares, self.windows, self.seed)

    def samples_before_repeats(self) -> int:
        """How many samples, from number 0 on, come before a source gives its first window again."""
        high = 1
        while not self._repeats_before(high):
            high *= 2
        low = 0  # no source repeats before block `low`, one does before block `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._repeats_before(middle) else (middle, high)
        start, stop = self.shares.bounds(low)
        return start + int(np.argmax(self.locate(np.arange(start, stop)).epoch_B > 0))

    def _repeats_before(self, block: int) -> bool:
        return bool((self.shares.before(block) > self.windows).any())


class RingBlend(Blend):
    """Says at which token of which source sample k of a run begins.

    Each source is read as a ring of windows that begin at another random phase in every epoch.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        window: int,
        least_tokens: int,
        seed: int,
        expected_tokenizer_hash: str | None = None,
    ) -> None:
        """See `Blend`. window: tokens from the begin of one sample to the next in file order. UserError, too, for a dataset
        of less than `least_tokens` tokens."""
        super().__init__(sources, seed, expected_tokenizer_hash)
        self.window = window
        for dataset in self.datasets:
            _check_length(dataset, least_tokens)
        windows = [dataset.num_tokens // window for dataset in self.datasets]
        self.share_out([share for _, share in sources], windows, window)

    def window_starts(self, samples_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the token number in its source at which each sample begins, and the source."""
        source_B, epoch_B, window_B = self.locate(samples_B)
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


def _check_ids_are_whole(dataset: IndexedDataset) -> None:
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
