"""First-fit decreasing: the very packs that the plain algorithm gives, every label once, and fast enough for millions."""

from itertools import pairwise

import numpy as np
import pytest

from megalm.dataset.packing import _Runs, first_fit_decreasing, pack_documents


def plainly(sizes: list[int], capacity: int) -> tuple[list[int], int]:
    """Johnson's definition, item by item and bin by bin."""
    rooms: list[int] = []
    bins = [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = [number for number, room in enumerate(rooms) if room >= sizes[item]]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        rooms[fitting[0]] -= sizes[item]
        bins[item] = fitting[0]
    return bins, len(rooms)


@pytest.mark.parametrize("seed", range(60))
def test_bins_are_those_of_the_plain_algorithm(seed):
    random = np.random.default_rng(seed)
    capacity = int(random.integers(1, 70))
    low = int(random.integers(1, capacity + 1))
    sizes = random.integers(low if seed % 2 else 1, capacity + 1, int(random.integers(0, 150)))
    bins, count = first_fit_decreasing(sizes, capacity)
    assert (bins.tolist(), count) == plainly(sizes.tolist(), capacity)


@pytest.mark.parametrize("capacity", [1, 2, 63, 64, 65, 4096])
def test_capacities_around_powers_of_two(capacity):
    sizes = np.array([capacity, 1, max(1, capacity // 2), max(1, capacity - 1), 1, capacity])
    bins, count = first_fit_decreasing(sizes, capacity)
    assert (bins.tolist(), count) == plainly(sizes.tolist(), capacity)


@pytest.mark.parametrize("capacity", [2048, 131_072])
def test_a_million_documents_take_few_steps_and_leave_little_padding(monkeypatch, capacity):
    """Items of one size are placed together: without that there would be a step for each of them."""
    steps = []
    take_first = _Runs.take_first
    monkeypatch.setattr(
        _Runs, "take_first", lambda self, room: (steps.append(room), take_first(self, room))[1]
    )
    random = np.random.default_rng(0)
    lengths = 2 + np.minimum(random.lognormal(6, 1.2, 10**6).astype(int), capacity - 1)
    packs = pack_documents(lengths, capacity)
    assert len(steps) < 100_000
    assert packs.efficiency > 0.999
    assert np.add.reduceat(packs.labels_P, packs.borders[:-1]).max() <= capacity
    assert np.array_equal(np.sort(packs.document_P), np.arange(10**6))


@pytest.mark.parametrize("long_documents", ["cut", "truncate", "drop"])
def test_every_label_that_is_kept_is_in_one_piece(long_documents):
    lengths = np.array([0, 1, 2, 7, 8, 9, 10, 23, 16, 15, 2])
    packs = pack_documents(lengths, 7, long_documents)
    kept = {
        "cut": {(d, i) for d, n in enumerate(lengths) for i in range(n - 1)},
        "truncate": {(d, i) for d, n in enumerate(lengths) for i in range(min(7, n - 1))},
        "drop": {(d, i) for d, n in enumerate(lengths) if n <= 8 for i in range(n - 1)},
    }
    pieces = list(
        zip(packs.document_P.tolist(), packs.first_P.tolist(), packs.labels_P.tolist(), strict=True)
    )
    found = [(d, first + i) for d, first, count in pieces for i in range(count)]
    assert len(found) == len(set(found)) and set(found) == kept[long_documents]
    assert (packs.dropped, packs.cut) == ((7, 0) if long_documents == "drop" else (2, 5))
    per_pack = np.add.reduceat(packs.labels_P, packs.borders[:-1])
    assert per_pack.max() <= 7 and per_pack.min() > 0
    for first, stop in pairwise(packs.borders.tolist()):
        assert (np.diff(packs.labels_P[first:stop]) <= 0).all(), "the longest stands first"
    assert packs.efficiency == pytest.approx(len(found) / (7 * packs.count))


def test_nothing_gives_no_packs():
    packs = pack_documents(np.array([1, 0]), 8)
    assert (packs.count, packs.efficiency, packs.dropped) == (0, 0.0, 2)
