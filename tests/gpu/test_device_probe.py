"""The probe of a GPU's speed gives the time of a product of matrices; skipped without a device."""

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_probe_times_a_product_and_leaves_no_work_behind() -> None:
    from megalm.watch.device_probe import SIZE, DeviceProbe

    probe = DeviceProbe(torch.device("cuda"))
    seconds = [probe.seconds() for _ in range(5)][1:]
    operations = 2 * SIZE**3
    # between 1 TFLOP/s, less than any device that trains, and 10 PFLOP/s, more than any there is
    assert all(operations / 1e16 < one < operations / 1e12 for one in seconds)
    assert torch.cuda.current_stream().query()
