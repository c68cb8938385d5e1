"""Finds the fused kernels and tools on this machine: which are installed, which can be used, and what stands in for the others."""

import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import torch

NEEDS_CUDA = "needs a CUDA GPU"


@dataclass(frozen=True)
class Kernel:
    """One optional package or tool.

    `used` says whether this version of megalm (or Megatron-Core under it) calls it where it is usable; `choice` names what in
    the configuration asks for it, and is empty where it is called unasked. `version` is None where it is not installed;
    `problem` says why it cannot be used, and is empty where it can.
    """

    name: str
    serves: str
    stand_in: str
    used: bool
    choice: str = ""
    version: str | None = None
    problem: str = "not installed"

    @property
    def usable(self) -> bool:
        """Whether it can be used here."""
        return not self.problem

    @property
    def runs(self) -> str:
        """What does the work here: the kernel itself, or what stands in for it."""
        if not (self.usable and self.used):
            return self.stand_in
        return f"{self.stand_in}; with {self.choice} {self.name}" if self.choice else self.name


# Megatron-Core compiles its fused functions on CUDA by itself. `auto` takes what has been measured to be faster, which on CUDA
# none of the packages has been yet: they are asked for by name.
TRANSFORMER_ENGINE = Kernel(
    "transformer_engine",
    "attention, norm, RoPE, fp8 linears",
    "torch's kernels in bf16",
    used=True,
    choice="model.attention=te, model.norm=te, model.rope_kernel=te, precision.fp8",
)
APEX = Kernel(
    "apex",
    "optimizer, norm",
    "torch's fused AdamW, torch's norms",
    used=True,
    choice="optimizer.kernel=apex, model.norm=apex",
)
FLASH_ATTN = Kernel(
    "flash_attn",
    "attention",
    "torch's scaled_dot_product_attention",
    used=True,
    choice="model.attention=flash",
)
LIGER = Kernel(
    "liger_kernel",
    "norm, activation, RoPE, cross entropy",
    "torch's functions, megalm's chunked cross entropy",
    used=True,
    choice="model.norm=liger, model.activation_kernel=liger, model.rope_kernel=liger, model.cross_entropy=liger",
)
TRITON = Kernel("triton", "torch.compile on CUDA", "functions run uncompiled", used=True)
DEEPSPEED = Kernel(
    "deepspeed",
    "ZeRO-2, ZeRO-3, offload (engine=deepspeed)",
    "Megatron-Core's distributed optimizer (ZeRO-1)",
    used=True,
)
CXX = Kernel(
    "c++",
    "torch.compile on the CPU, DeepSpeed's CPU Adam",
    "functions run uncompiled, torch's fused AdamW",
    used=True,
    choice="train.compile, model.activation_kernel=compile",
)


def detect() -> dict[str, Kernel]:
    """Every kernel megalm knows of, by name. Where CUDA is present, the installed ones are imported to see that they work."""
    found = (
        _on_cuda(TRANSFORMER_ENGINE, "transformer_engine.pytorch"),
        apex(),
        _on_cuda(FLASH_ATTN, "flash_attn"),
        _on_cuda(LIGER, "liger_kernel.transformers"),
        _on_cuda(TRITON, "triton"),
        _installed(DEEPSPEED),
        cxx_compiler(),
    )
    return {kernel.name: kernel for kernel in found}


def apex() -> Kernel:
    """NVIDIA's apex, told apart from the unrelated package of that name on PyPI without importing that one."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return APEX
    if not any((Path(folder) / "optimizers").is_dir() for folder in spec.submodule_search_locations or ()):
        problem = "the unrelated package from PyPI, not NVIDIA's"
    elif importlib.util.find_spec("amp_C") is None:
        problem = "built without its CUDA extensions (no amp_C)"
    else:
        problem = _import_problem("amp_C") or _import_problem("apex.optimizers")
    return replace(APEX, version=_version("apex"), problem=problem)


def is_unrelated_apex(kernel: Kernel) -> bool:
    """Whether `apex()` found the package that only shares NVIDIA's name."""
    return "unrelated" in kernel.problem


def cxx_compiler() -> Kernel:
    """The C++ compiler that torch would call ($CXX, else g++ or on macOS clang++), with Python's headers beside it."""
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    path = shutil.which(command)
    if path is None:
        return replace(CXX, problem=f"no `{command}` on the PATH")
    asked = subprocess.run([path, "-dumpversion"], capture_output=True, text=True, timeout=30)
    if asked.returncode != 0:
        return replace(CXX, problem=f"`{command} -dumpversion` failed")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    problem = "" if headers.exists() else f"no Python headers ({headers})"
    return replace(CXX, version=f"{command} {asked.stdout.strip()}", problem=problem)


def _on_cuda(kernel: Kernel, module: str) -> Kernel:
    """`kernel` as found; `module` must be importable, which is tried only where there is a GPU to use it on."""
    found = _installed(kernel)
    return replace(found, problem=_import_problem(module)) if found.usable else found


def _installed(kernel: Kernel) -> Kernel:
    if importlib.util.find_spec(kernel.name) is None:
        return kernel
    return replace(kernel, version=_version(kernel.name), problem="")


def _import_problem(module: str) -> str:
    if not torch.cuda.is_available():
        return NEEDS_CUDA
    try:
        importlib.import_module(module)
    except Exception as error:  # a kernel built for another torch or CUDA fails in any way it likes
        return f"importing {module} failed: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
