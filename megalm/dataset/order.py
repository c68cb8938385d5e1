"""Which window of which source sample k of a run is: a pure function, with nothing to build, store or share.

Sample numbers are cut into blocks of 4096. A block gives every source a number of slots (see `shares`), in an order
that is a keyed permutation of the block. How many slots of the source came before, in earlier blocks and in this one,
is the sample's *ordinal* in the source; the ordinal gives the epoch, and a keyed permutation of the epoch the window. An
epoch thus takes each window exactly once.
"""

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megalm.dataset.shares import Shares

ROUNDS = 6

Int64 = NDArray[np.int64]


class Location(NamedTuple):
    """Where samples lie: their sources, epochs and windows, one entry a sample."""

    source_B: Int64
    epoch_B: Int64
    window_B: Int64


def derive_key(*parts: int | str) -> int:
    """Return 64 bits that depend on every one of `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def permutation(index_B: Int64, size: int, key: int) -> Int64:
    """Return where a keyed permutation of [0, size) sends each of `index_B`; constant memory for any size.

    A balanced Feistel network on the next even number of bits, repeated while the result is outside
    (cycle walking: Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    round_keys = [np.uint64(derive_key(key, r)) for r in range(ROUNDS)]
    result = np.asarray(index_B).astype(np.uint64)
    outside = np.ones(result.shape, bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & mask)
        result[outside] = (left << half) | right
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


def uniform(count: int, key: int) -> NDArray[np.float64]:
    """Return `count` numbers in [0, 1) that depend on `key` alone, on every machine and NumPy version alike."""
    counter = np.arange(count, dtype=np.uint64) + np.uint64(key)
    bits = _mix(_mix(counter) + np.uint64(key)) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def locate(samples_B: Int64, shares: Shares, windows: Int64, seed: int) -> Location:
    """Return source, epoch and window of the global `samples_B`.

    `windows` is the number of windows an epoch of each source has.
    """
    block_B = shares.block_of(samples_B)
    located = Location(*(np.empty_like(samples_B) for _ in Location._fields))
    for block in sorted(set(block_B.tolist())):
        here = block_B == block
        first, _ = shares.bounds(block)
        table = _locate_block(block, shares, tuple(windows.tolist()), seed)
        for column_B, column in zip(located, table, strict=True):
            column_B[here] = column[samples_B[here] - first]
    return located


@lru_cache(maxsize=16)
def _locate_block(block: int, shares: Shares, windows: tuple[int, ...], seed: int) -> Location:
    """Return where all samples of a block lie: done at once, for the next batches want its other samples."""
    start, stop = shares.bounds(block)
    before = shares.before(block)
    quotas = shares.before(block + 1) - before
    order = permutation(np.arange(stop - start), stop - start, derive_key("block", seed, block))
    source_B = np.searchsorted(np.cumsum(quotas), order, side="right").astype(np.int64)
    epoch_B, window_B = np.empty_like(source_B), np.empty_like(source_B)
    for source in np.flatnonzero(quotas).tolist():
        here_B = source_B == source
        epochs, places = np.divmod(before[source] + np.arange(quotas[source]), windows[source])
        epoch_B[here_B] = epochs
        taken = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            key = derive_key("window", seed, source, epoch)
            taken[here] = permutation(places[here], windows[source], key)
        window_B[here_B] = taken
    return Location(source_B, epoch_B, window_B)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of SplitMix64 (Steele, Lea and Flood 2014); array arithmetic wraps modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
