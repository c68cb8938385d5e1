"""Sorted runs give back all rows in order, equal keys together, whatever the pieces."""

import numpy as np
import pytest

from megalm.corpus.dedup import runs
from megalm.corpus.dedup.runs import TOP, Run, RunWriter, groups, key_range, members, ranges, run_paths


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUN_BYTES", 1 << 10)
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, 1 << 64, 5000, np.uint64), rng.integers(0, 100, 5000).astype(np.uint64)])
    rows[0, ::3] = rows[0, 0]
    for rank in range(3):
        writer = RunWriter(tmp_path, rank, 2)
        for i in range(rank, 5000, 300):
            writer.add(*rows[:, i : i + 300][:, (np.arange(i, min(i + 300, 5000)) % 3) == rank])
        writer.close()
    mine = [
        rows[:, i : i + 300][:, (np.arange(i, min(i + 300, 5000)) % 3) == r]
        for r in range(3)
        for i in range(r, 5000, 300)
    ]
    return tmp_path, np.concatenate(mine, axis=1)


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranges_of_all_tasks_are_all_rows_in_order(written, world_size):
    folder, rows = written
    assert len(run_paths(folder)) > 3
    paths = [Run(path) for path in run_paths(folder)]
    pieces = [
        piece
        for rank in range(world_size)
        for piece in ranges(paths, *key_range(rank, world_size), columns=2)
    ]
    assert len(pieces) > world_size
    assert np.array_equal(np.concatenate(pieces, axis=1), runs.sort_rows(rows))
    keys = [set(piece[0].tolist()) for piece in pieces]
    assert sum(map(len, keys)) == len(set().union(*keys))  # no key in two pieces


def test_a_mark_is_set_in_the_second_column(written):
    folder, _ = written
    path = run_paths(folder)[0]
    (first, *_), (second, *_) = (list(ranges([Run(path, mark)], 0, TOP, 2)) for mark in (0, 1 << 63))
    assert (second[1] == first[1] | np.uint64(1 << 63)).all()
    assert (second[0] == first[0]).all()


def test_unique_writer_leaves_each_row_once(tmp_path):
    writer = RunWriter(tmp_path, 0, 2, unique=True)
    writer.add(np.array([3, 1, 3, 3], np.uint64), np.array([1, 1, 1, 2], np.uint64))
    writer.close()
    assert np.load(run_paths(tmp_path)[0]).tolist() == [[1, 3, 3], [1, 1, 2]]


def test_an_empty_writer_leaves_an_empty_run(tmp_path):
    RunWriter(tmp_path, 0, 2).close()
    assert [piece.shape for piece in ranges([Run(path) for path in run_paths(tmp_path)], 0, TOP, 2)] == [
        (2, 0)
    ]


def test_groups_are_runs_of_equal_keys():
    starts, ends = groups(np.array([[1, 2, 2, 3, 4, 4, 4]], np.uint64))
    assert (starts.tolist(), ends.tolist()) == ([1, 4], [3, 7])
    assert members(starts, ends).tolist() == [1, 2, 4, 5, 6]
    assert [part.tolist() for part in groups(np.empty((1, 0), np.uint64))] == [[], []]
