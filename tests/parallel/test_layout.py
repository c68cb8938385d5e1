"""A process group is refused where it cannot work, and does not outlive its process's Python."""

import subprocess
import sys

import pytest
import torch

from megalm.errors import UserError
from megalm.parallel.layout import init_process_group


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


def test_the_world_is_gone_before_python_ends() -> None:
    program = """
import atexit
import torch.distributed as dist
from megalm.parallel.layout import init_process_group
atexit.register(lambda: print("left", dist.is_initialized()))
init_process_group("gloo")
print("made", dist.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["made", "True", "left", "False"], done.stderr
