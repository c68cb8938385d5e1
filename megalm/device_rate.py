"""How many floating-point operations a second a device can do: data sheets' peaks, and matmuls measured."""

import re
import time

import torch

WINDOW_SECONDS = 0.1

# Dense bf16 peak with fp32 accumulation, in TFLOP/s, by a whole-word part of the name that CUDA gives; the first match counts.
# NVIDIA's data sheets give most Hopper and Blackwell figures with 2:4 sparsity: those are halved here.
PEAK_BF16_TFLOPS = {
    "GB300": 2500.0,  # GB300 NVL72 page: 360 PFLOP/s sparse on 72 GPUs
    "GB200": 2500.0,  # GB200 NVL72 data sheet: 5 PFLOP/s sparse a GPU
    "B300": 2250.0,  # HGX platform page: HGX B300, 36 PFLOP/s sparse on 8 GPUs
    "B200": 2250.0,  # HGX B200 data sheet: 4.5 PFLOP/s sparse a GPU
    "GH200": 989.4,  # GH200 data sheet: 1,979 sparse
    "H200 NVL": 835.5,  # H200 data sheet: 1,671 sparse
    "H200": 989.4,  # H200 data sheet (SXM): 1,979 sparse
    "H100 NVL": 835.5,  # H100 data sheet: 1,671 sparse
    "H100 PCIe": 756.0,  # H100 data sheet (PCIe): 1,513 sparse
    "H100": 989.4,  # H100 data sheet (SXM): 1,979 sparse
    "H800 PCIe": 756.0,  # as H100 PCIe: only links and fp64 differ
    "H800": 989.4,  # as H100 SXM: only links and fp64 differ
    "H20": 148.0,  # H20 data sheet
    "A100": 312.0,  # A100 data sheet, SXM and PCIe
    "A800": 312.0,  # as A100: only the links differ
    "A40": 149.7,  # A40 data sheet
    "A30": 165.0,  # A30 data sheet
    "A10": 125.0,  # A10 data sheet
    "L40S": 362.05,  # L40S data sheet
    "L40": 181.05,  # L40 data sheet
    "L4": 121.0,  # L4 data sheet: 242 sparse
}

# Memory of one device in GiB by the same names, from the same data sheets; not those that are sold with several sizes.
MEMORY_GIB = {
    "B200": 180,
    "H200 NVL": 141,
    "H200": 141,
    "H100 NVL": 94,
    "H100 PCIe": 80,
    "H100": 80,
    "H800 PCIe": 80,
    "H800": 80,
    "A100": 80,  # or 40, of the first ones
    "A800": 80,
    "A40": 48,
    "A30": 24,
    "A10": 24,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
}


def peak_flops_per_second(device_name: str) -> float | None:
    """Dense bf16 peak of the device CUDA calls `device_name`, in FLOP/s; None where it is not known.

    A MIG slice carries the name of the whole device, of whose peak it has a part: not known.
    """
    if "MIG" in device_name.split():
        return None
    for name, tflops in PEAK_BF16_TFLOPS.items():
        if re.search(rf"\b{name}\b", device_name):
            return tflops * 1e12
    return None


def matmul_flops_per_second(
    dtype: torch.dtype, device: torch.device, seconds: float = WINDOW_SECONDS
) -> float:
    """Rate of square matmuls (2 n^3 operations each; n 8192 on CUDA, 1024 on CPU) done one after another for `seconds`.

    With as many threads as this process uses, and without touching the global random state.
    """
    size = 8192 if device.type == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    a_NN, b_NN = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    count, elapsed, start = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        a_NN @ b_NN
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
        elapsed = time.perf_counter() - start
    return 2 * size**3 * count / elapsed
