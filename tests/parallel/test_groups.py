"""Groups of equal ranks are one group on gloo, also over several layouts, with the timeout that was asked for."""

from collections import Counter
from datetime import timedelta

import torch.distributed as dist

from megalm.config.schema import ParallelConfig
from megalm.parallel.layout import Layout, create_layout
from megalm.testing import run_distributed


def groups_of(layout: Layout) -> list[dist.ProcessGroup]:
    return [group for group in vars(layout.groups).values() if isinstance(group, dist.ProcessGroup)]


def ranks_of(layout: Layout) -> Counter[tuple[int, ...]]:
    """How many different groups there are of the same ranks."""
    distinct = {id(group): group for group in groups_of(layout)}.values()
    return Counter(tuple(dist.get_process_group_ranks(group)) for group in distinct)


def make_layouts() -> tuple[list[Counter[tuple[int, ...]]], bool, timedelta]:
    first = create_layout(ParallelConfig(tensor_model_parallel_size=2, timeout_minutes=7))
    second = create_layout(ParallelConfig(pipeline_model_parallel_size=2, timeout_minutes=7))
    again = create_layout(ParallelConfig(tensor_model_parallel_size=2, timeout_minutes=7))
    same = all(a is b for a, b in zip(groups_of(first), groups_of(again), strict=True))
    timeout = first.groups.tp._get_backend(first.device).options._timeout
    return [ranks_of(first), ranks_of(second)], same, timeout


def test_each_set_of_ranks_has_one_group() -> None:
    for rank, (layouts, same, timeout) in enumerate(run_distributed(make_layouts, 4)):
        for layout in layouts:
            assert set(layout.values()) == {1}
            assert (rank,) in layout and (0, 1, 2, 3) in layout
        pair = (rank // 2 * 2, rank // 2 * 2 + 1)
        assert pair in layouts[0] and (rank % 2, rank % 2 + 2) in layouts[1]
        assert same and timeout == timedelta(minutes=7)
