"""Clusters are the connected components, and the smallest member is the root."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megalm.corpus.dedup.clusters import join, roots


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=60),
            st.integers(1, 9),
        )
    )
)
def test_roots_are_the_smallest_members_of_connected_components(case):
    count, edges, piece = case
    expected = list(range(count))
    for _ in range(count):  # labels spread until nothing changes
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    parents = np.arange(count)
    for i in range(0, len(edges), piece):
        first, second = np.array(edges[i : i + piece]).T
        join(parents, first, second)
    assert roots(parents, np.arange(count)).tolist() == expected


def test_a_long_chain_in_the_worst_order_is_one_cluster():
    count = 100_000
    parents = np.arange(count)
    order = np.random.default_rng(0).permutation(count - 1)
    join(parents, order, order + 1)
    assert not roots(parents, np.arange(count)).any()
