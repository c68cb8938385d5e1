"""A process group is refused where it cannot work; those of a layout for a while leave nothing behind."""

import gc

import psutil
import pytest
import torch
import torch.distributed as dist

from megalm.config.schema import ParallelConfig
from megalm.errors import UserError
from megalm.parallel.layout import create_layout, init_process_group, temporary_groups
from tests.worlds import in_world


def test_more_processes_than_gpus_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match=r"process 1 .* finds 1 GPU\(s\).*CUDA_VISIBLE_DEVICES= "):
        init_process_group()


def test_nccl_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="nccl needs a GPU and torch finds none: take auto or gloo"):
        init_process_group("nccl")


@in_world(2)
def test_temporary_groups_go_with_their_threads_and_others_stay() -> None:
    kept = create_layout(ParallelConfig(tensor_model_parallel_size=2))
    groups, within, after = len(dist.distributed_c10d._world.pg_map), [], []
    for _ in range(2):
        with temporary_groups():
            create_layout(ParallelConfig(pipeline_model_parallel_size=2))
            within.append(psutil.Process().num_threads())
        gc.collect()
        after.append(psutil.Process().num_threads())
        assert len(dist.distributed_c10d._world.pg_map) == groups
    assert after[0] == after[1] < within[1] == within[0]
    total = torch.ones(1)
    dist.all_reduce(total, group=kept.groups.tp)
    assert total == 2
