"""Joins the pairs of so many documents in clusters of four and prints by how much the memory in use grew at its peak."""

import sys
import tempfile
from pathlib import Path

import numpy as np

from megalm.corpus.dedup import clusters, runs
from megalm.corpus.dedup.catalog import ENTRY, documents_in, number_of
from megalm.corpus.dedup.clusters import Cluster, decisions_of
from megalm.corpus.dedup.runs import RunWriter
from tests.memory import peak_bytes, reset_peak

SHARDS = 4


def prepare(folder: Path, count: int) -> None:
    """Catalogs and pairs as the stages before leave them; documents of a cluster lie in different shards."""
    (folder / "catalog").mkdir()
    for shard in range(SHARDS):
        with open(folder / f"catalog/{shard:05d}.entries", "wb") as file:
            for begin in range(0, count // SHARDS, 10_000):
                entries = np.zeros(10_000, ENTRY)
                entries["id"] = (np.arange(begin, begin + 10_000) + shard) % SHARDS
                file.write(entries.tobytes())
    for shard in range(SHARDS - 1):
        writer = RunWriter(folder / "pairs", shard, 2)
        for begin in range(0, count // SHARDS, 10_000):
            places = np.arange(begin, begin + 10_000, dtype=np.uint64)
            writer.add(places + np.uint64(number_of(shard, 0)), places + np.uint64(number_of(shard + 1, 0)))
        writer.close()


def check(folder: Path) -> None:
    """All documents are in clusters of four, of which the one with the least id stays."""
    for shard in range(SHARDS):
        places = 0
        for number, stays, size in decisions_of(folder, shard):
            expected = (-number) % np.uint64(
                SHARDS
            )  # place + shard of the least id is a multiple of the shards
            assert (size == SHARDS).all() and (stays >> np.uint64(40) == expected).all()
            places += len(number)
        assert places == documents_in(folder / "catalog", shard)


def main(count: int) -> None:
    runs.RUN_BYTES = 1 << 20
    clusters.PAIRS_AT_ONCE = clusters.DOCUMENTS_AT_ONCE = 1 << 16
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, count)
        before = reset_peak()
        Cluster(folder, [], "pairs").work((), 0, 1)
        print(peak_bytes() - before)
        check(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]))
