"""Clusters are the connected components, and the best document of each stays, in memory that does not grow with them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalm.corpus.dedup import runs
from megalm.corpus.dedup.clusters import descending
from megalm.corpus.dedup.components import stars


def labelled(pairs: list[tuple[int, int]], piece: int) -> dict[int, int]:
    """Label of each member that `stars` gives, with pairs coming in pieces."""
    pieces = (np.array(pairs[i : i + piece], np.uint64).reshape(-1, 2).T for i in range(0, len(pairs), piece))
    with tempfile.TemporaryDirectory() as folder:
        found = [
            pair
            for labels, members in stars(((first, second) for first, second in pieces), Path(folder) / "work")
            for pair in zip(members.tolist(), labels.tolist(), strict=True)
        ]
    assert len(found) == len(dict(found))  # each member once
    return dict(found)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60),
    st.integers(1, 9),
    st.sampled_from([64, 1 << 24]),
)
def test_labels_are_those_of_connected_components(edges, piece, run_bytes):
    expected = {node: node for edge in edges for node in edge if edge[0] != edge[1]}
    for _ in range(len(expected)):  # labels spread until nothing changes
        for a, b in edges:
            if a != b:
                expected[a] = expected[b] = min(expected[a], expected[b])
    before, runs.RUN_BYTES = runs.RUN_BYTES, run_bytes
    try:
        found = labelled(edges, piece)
    finally:
        runs.RUN_BYTES = before
    assert found.keys() == expected.keys()
    for node, other in ((a, b) for a in expected for b in expected):
        assert (found[node] == found[other]) == (expected[node] == expected[other])


def test_a_long_chain_in_the_worst_order_is_one_cluster_in_few_rounds(monkeypatch):
    from megalm.corpus.dedup import components

    rounds = []
    large_star = components._large_star
    monkeypatch.setattr(components, "_large_star", lambda *paths: rounds.append(1) or large_star(*paths))
    count = 20_000
    order = np.random.default_rng(0).permutation(count - 1)
    found = labelled(np.stack([order, order + 1], axis=1).tolist(), 1 << 20)
    assert len(found) == count and len(set(found.values())) == 1
    assert len(rounds) <= 16


def test_scores_turn_into_integers_in_the_opposite_order():
    scores = np.array([np.inf, 1e300, 2.0, 1.0, 5e-324, 0.0, -0.0, -1.0, -np.inf])
    turned = descending(scores).tolist()
    assert turned == sorted(turned) and turned[5] == turned[6] and len(set(turned)) == len(scores) - 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clusters():
    """A million documents in clusters of four; arrays over all of them would take a hundred megabytes."""
    peaks = []
    for count in (100_000, 1_000_000):
        command = [sys.executable, "-m", "tests.corpus.dedup.clusters_worker", str(count)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, timeout=300)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 24 << 20
