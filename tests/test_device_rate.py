"""Peaks of devices by name, else a measured rate."""

import pytest
import torch

from megalm import device_rate


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L4", 121.0),
    ],
)
def test_peak_of_a_known_device(name, tflops):
    assert device_rate.peak_flops_per_second(name) == tflops * 1e12


@pytest.mark.parametrize(
    "name", ["NVIDIA RTX A1000", "Tesla T4", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "AMD Instinct MI300X"]
)
def test_peak_of_an_unknown_device_or_a_slice_is_not_guessed(name):
    assert device_rate.peak_flops_per_second(name) is None


def test_measuring_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    rate = device_rate.matmul_flops_per_second(torch.float32, torch.device("cpu"), seconds=0.01)
    assert torch.equal(torch.get_rng_state(), before)
    assert rate > 0
