"""Connected components of graphs larger than memory: pairs on disk are turned into stars, round by round.

Kiveris, Lattanzi, Mirrokni, Rastogi, Vassilvitskii 2014, "Connected Components in MapReduce and Beyond" (large-star,
small-star). A round sorts the pairs twice; the number of rounds grows with the logarithm of the longest chain at most
squared, and is two or three where most documents of a cluster are already tied to one.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megalm.corpus.dedup.runs import TOP, Rows, Run, RunWriter, ranges, run_paths, unique_rows

Numbers = NDArray[np.uint64]

_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio
_FACTOR, _INVERSE = np.uint64(_ODD), np.uint64(pow(_ODD, -1, TOP))


def stars(pairs: Iterable[tuple[Numbers, Numbers]], work: Path) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield (label, member) for each member of a connected component of two or more, sorted by label piece by piece.

    Every member of a component comes with the same label, which is spread evenly over [0, 2^64). Memory is that of the
    pieces of `ranges`, and of the largest component; the files lie in `work`, which is emptied first.
    """
    shutil.rmtree(work, ignore_errors=True)
    both, smaller = work / "both", work / "smaller"
    writer = RunWriter(both, 0, 2, unique=True)
    for first, second in pairs:
        # Numbers of documents are clustered; multiplied, they fall evenly into the ranges that are read at a time.
        _add_both(writer, first * _FACTOR, second * _FACTOR)
    writer.close()
    while _large_star(both, smaller) | _small_star(smaller, both):
        pass
    for rows in _grouped(both):
        root, member = rows[:, rows[0] < rows[1]]
        roots = np.unique(root)
        yield np.concatenate([roots, root]), np.concatenate([roots, member]) * _INVERSE
    shutil.rmtree(work)


def _large_star(source: Path, target: Path) -> bool:
    """Tie the larger neighbours of each node to the smallest of node and neighbours; whether that changed anything."""
    changed = False
    writer = RunWriter(target, 0, 2, unique=True)
    for rows in _grouped(source):
        node, neighbour = rows
        least = np.minimum(node, _first_of_group(rows))
        larger = neighbour > node
        writer.add(neighbour[larger], least[larger])
        changed |= bool((least[larger] != node[larger]).any())
    writer.close()
    shutil.rmtree(source)
    return changed


def _small_star(source: Path, target: Path) -> bool:
    """Tie each node and its smaller neighbours to the smallest of these; whether that changed anything."""
    changed = False
    writer = RunWriter(target, 0, 2, unique=True)
    for rows in _grouped(source):
        node, neighbour = rows
        least = _first_of_group(rows)
        others = neighbour != least
        _add_both(writer, neighbour[others], least[others])
        _add_both(writer, node[~others], least[~others])
        changed |= bool(others.any())
    writer.close()
    shutil.rmtree(source)
    return changed


def _add_both(writer: RunWriter, first: Numbers, second: Numbers) -> None:
    writer.add(np.concatenate([first, second]), np.concatenate([second, first]))


def _grouped(folder: Path) -> Iterator[Rows]:
    """The rows of all runs in order, without repetitions; those of a first column come together."""
    for rows in ranges([Run(path) for path in run_paths(folder)], 0, TOP, columns=2):
        if rows.shape[1]:
            yield unique_rows(rows)


def _first_of_group(rows: Rows) -> Numbers:
    """For each row the smallest second column of the rows that share its first."""
    node, neighbour = rows
    fresh = np.ones(len(node), bool)
    fresh[1:] = node[1:] != node[:-1]
    return neighbour[fresh][np.cumsum(fresh) - 1]
