"""Examines this machine: devices, versions, speed of the matmul, fused kernels and what stands in for the missing ones."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import megalm
from megalm import kernels
from megalm.device_rate import matmul_flops_per_second
from megalm.launch import available_cores
from megalm.parallel._expected import SUPPORTED_VERSION

PACKAGES = ("torch", "megatron-core", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy")
GIB = 2**30
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


def report() -> dict[str, Any]:
    """Everything `megalm doctor` says, as plain values: sizes in GiB, rates in TFLOP/s, absent packages as None."""
    packages = {name: _version(name) for name in PACKAGES}
    found = kernels.detect()
    devices = _devices()
    device = torch.device("cuda" if devices else "cpu")
    return {
        "megalm": megalm.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "name": _cpu_name(),
            "cores": available_cores(),
            "memory_gib": round(_memory_bytes() / GIB, 1),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        },
        "devices": devices,
        "backend": "nccl" if torch.cuda.is_available() else "gloo",
        "matmul_tflops": {
            str(dtype)[6:]: round(matmul_flops_per_second(dtype, device) / 1e12, 3)
            for dtype in (torch.float32, torch.bfloat16)
        },
        "packages": packages,
        "kernels": [_kernel_row(kernel) for kernel in found.values()],
        "warnings": _warnings(found, packages["megatron-core"]),
    }


def render(report: dict[str, Any]) -> str:
    """The report as text for a terminal."""
    cpu, rates = report["cpu"], report["matmul_tflops"]
    lines = [
        f"megalm    {report['megalm']}, Python {report['python']}, {report['platform']}",
        f"cpu       {cpu['name']}, {cpu['cores']} cores, {cpu['memory_gib']} GiB, {cpu['instructions']}",
        *(f"gpu       {_device_line(device)}" for device in report["devices"]),
        f"runs on   {'CUDA' if report['devices'] else 'the CPU (no CUDA device)'}, processes talk over {report['backend']}",
        "matmul    " + ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in rates.items()),
        "packages  " + ", ".join(f"{name} {version or '-'}" for name, version in report["packages"].items()),
        "",
        *_table(report["kernels"]),
    ]
    lines += ["", *(f"warning: {warning}" for warning in report["warnings"])] if report["warnings"] else []
    return "\n".join(lines)


def _devices() -> list[dict[str, Any]]:
    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / GIB, 1),
                "compute_capability": f"{properties.major}.{properties.minor}",
                "bf16": torch.cuda.is_bf16_supported(),
            }
        )
    return devices


def _device_line(device: dict[str, Any]) -> str:
    bf16 = "bf16" if device["bf16"] else "no bf16"
    return f"{device['name']}, {device['memory_gib']} GiB, compute capability {device['compute_capability']}, {bf16}"


def _kernel_row(kernel: kernels.Kernel) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "version": kernel.version,
        "usable": kernel.usable,
        "problem": kernel.problem,
        "serves": kernel.serves,
        "runs": kernel.runs,
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [("kernel", "found", "serves", "what runs here")]
    for row in rows:
        state = row["version"] or ""
        if row["problem"]:
            state = f"{state}: {row['problem']}" if state else row["problem"]
        cells.append((row["name"], state, row["serves"], row["runs"]))
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return [
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]])
        for row in cells
    ]


def _warnings(found: dict[str, kernels.Kernel], megatron_version: str | None) -> list[str]:
    warnings = []
    if megatron_version is None:
        warnings.append(f"megatron-core is not installed: pip install megatron-core=={SUPPORTED_VERSION}")
    elif megatron_version != SUPPORTED_VERSION:
        warnings.append(
            f"megatron-core {megatron_version} is untested: megalm supports {SUPPORTED_VERSION} "
            f"(pip install megatron-core=={SUPPORTED_VERSION})"
        )
    if kernels.is_unrelated_apex(found["apex"]):
        warnings.append(
            "`apex` is the unrelated package from PyPI, which Megatron-Core may mistake for NVIDIA's: "
            "pip uninstall apex (NVIDIA's is built from its source)"
        )
    if not found["c++"].usable:
        warnings.append(
            f"no working C++ compiler ({found['c++'].problem}): no torch.compile on the CPU and no DeepSpeed CPU Adam"
        )
    if Path("/dev/nvidia0").exists() and not torch.cuda.is_available():
        warnings.append(
            f"an NVIDIA GPU is here, but torch {torch.__version__} cannot use it: megalm runs on the CPU"
        )
    return warnings


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    """Memory this process may use: the machine's, or less where its control group has a limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.exists() else "max"
    return total if text == "max" else min(total, int(text))
