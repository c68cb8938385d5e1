"""Tensors without memory pass for tensors of the planned device."""

import pytest

from tests.plan.planner import in_planner, small_config


def _as_seen_on(kind: str) -> dict:
    import torch

    from megalm.plan.device import PretendDevice
    from megalm.plan.memory import MemoryTracker
    from megalm.plan.traffic import Traffic
    from megalm.plan.values import Values

    values = Values(small_config())
    with (
        PretendDevice(torch.device(kind), values.to_numpy),
        MemoryTracker(Traffic.__new__(Traffic), values),
    ):
        made = torch.zeros(2**40)  # 4 TiB
        moved = torch.ones(3).to(torch.device("cpu"))
        listed = torch.tensor([1.0, 2.0])
        return {
            "device": made.device.type,
            "moved": moved.device.type,
            "is_cuda": made.is_cuda,
            "type": made.type(),
            "sum": (made[:2] + listed).sum().item(),
            "list": listed.tolist(),
            "numpy": listed.numpy().shape,
            "true": bool((listed > 0).any()),
        }


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_device_is_the_planned_one_and_values_are_zero(kind):
    assert in_planner(_as_seen_on, kind) == {
        "device": kind,
        "moved": kind,
        "is_cuda": kind == "cuda",
        "type": "torch.FloatTensor",
        "sum": 0.0,
        "list": [0.0, 0.0],
        "numpy": (2,),
        "true": False,
    }
