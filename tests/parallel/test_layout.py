"""A process group is refused where it cannot work."""

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
