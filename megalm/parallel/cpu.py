"""Makes Megatron-Core run on CPU and gloo by rebinding names inside its own modules as they are imported; `torch` stays as it was.

Three things happen to a `megatron.core` module: its source is compiled with every reach for a GPU turned to the CPU (`_rewrite.py`
has the rules), its `torch.cuda` means `_cpu_device.py`, and the names in `REBINDINGS` are replaced once it has run.
"""

import importlib.abc
import importlib.metadata
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

import torch

from megalm.parallel import _cpu_device
from megalm.parallel._expected import EXPECTED, SUPPORTED_VERSION
from megalm.parallel._rewrite import CPU_DEVICE, CpuLoader

PACKAGE = "megatron.core"

# Warnings that nobody running a model can act upon: (message, module that gives it).
NOISE = (
    # Once per module and process; `megalm doctor` says it once, with what is used instead.
    (r"(Transformer Engine and )?Apex (is|are) not installed", r"megatron\.core"),
    # How the library calls torch, and its own default for a field.
    (r"Please use DTensor instead and we are deprecating ShardedTensor", r"torch\.distributed\.checkpoint"),
    (r"`load_state_dict` is deprecated and will be removed", r"megatron\.core\.dist_checkpointing"),
    (r"`torch\.distributed\.\w+_tensor` is deprecated", r"torch\.distributed\.c10d_logger"),
    (r"The \.grad attribute of a Tensor that is not a leaf", r"megatron\.core\.optimizer"),
    (r"If you are using transformer_engine as the transformer implementation", r"megatron\.core"),
    # Without sequence parallelism too such layouts train like one process (tests/parity/test_moe.py).
    (r"When using expert parallelism and tensor parallelism", r"megatron\.core"),
    (r"full scope is deprecated\. Use empty cuda_graph_scope", r"megatron\.core"),
)
# A setting of the CUDA driver, recommended under sequence parallelism; it means nothing on the CPU.
CPU_NOISE = (
    (r"When using (sequence parallelism|async grad allreduce) it is recommended to set", r"megatron\.core"),
)

_applied: dict[str, Counter[str]] = {}


def install() -> None:
    """Let every later import of `megatron.core` run on the CPU; call it before the first one.

    Where CUDA is available it only silences the warnings in `NOISE`. Calling it again changes nothing.
    Raises RuntimeError when `megatron.core` was imported before.
    """
    _silence(NOISE)
    if torch.cuda.is_available() or any(isinstance(finder, _CpuFinder) for finder in sys.meta_path):
        return
    early = sys.modules.get(PACKAGE)
    if early is not None and not hasattr(early, CPU_DEVICE):
        raise RuntimeError(
            "megatron.core was imported before megalm.parallel.cpu.install() and is still bound to CUDA; "
            "call install() first (importing megalm.parallel.cpu alone does not)"
        )
    version = importlib.metadata.version("megatron-core")
    if version != SUPPORTED_VERSION:
        warnings.warn(
            f"megatron-core {version} on the CPU is untested: megalm supports {SUPPORTED_VERSION}",
            stacklevel=2,
        )
    _silence(CPU_NOISE)
    sys.meta_path.insert(0, _CpuFinder())


def applied() -> dict[str, dict[str, int]]:
    """What was done so far: for each changed module how often each rule or rebinding applied."""
    return {name: dict(sorted(counts.items())) for name, counts in sorted(_applied.items())}


def differences() -> list[str]:
    """What was done otherwise than `EXPECTED` says, one line a module; empty when every rewrite and rebinding took hold.

    Looks at the modules imported so far, so import `ENTRY_POINTS` before.
    """
    done = applied()
    return [
        f"{name}: expected {expected}, found {done.get(name, {})}"
        for name, expected in EXPECTED.items()
        if done.get(name, {}) != expected
    ]


def _silence(noise: Sequence[tuple[str, str]]) -> None:
    for message, module in noise:
        warnings.filterwarnings("ignore", message=message, module=module)


class _CpuFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of `megatron.core` and gives them `CpuLoader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PACKAGE and not fullname.startswith(PACKAGE + "."):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = CpuLoader(fullname, spec.loader.path, _record, _rebind)
        return spec


def _record(module_name: str, counts: Counter[str]) -> None:
    if counts:
        _applied.setdefault(module_name, Counter()).update(counts)


def _rebind(module: ModuleType) -> None:
    rebinding = REBINDINGS.get(module.__name__)
    if rebinding is not None:
        _record(module.__name__, Counter(rebinding(module)))


def _use_cpu_generator(module: ModuleType) -> list[str]:
    """The RNG tracker swaps generator states through these two, which reach past `torch.cuda` into CUDA's C bindings."""
    # It warns when the CPU generator moves inside a fork, which on the CPU is what a fork is for.
    logging.getLogger(module.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
    return _replace(
        module, _get_cuda_rng_state=_cpu_device.get_rng_state, _set_cuda_rng_state=_cpu_device.set_rng_state
    )


def _use_no_jit_fuser(module: ModuleType) -> list[str]:
    """`jit_fuser` is torch.compile: on the CPU it needs a C++ compiler at run time and imports torch's compiler at start.

    What megalm compiles, it compiles by whole layers and by the user's choice; inner functions then come along.
    """
    if not hasattr(module, "disable_jit_fuser"):
        return []
    module.disable_jit_fuser()
    return ["jit_fuser"]


def _define_te_general_gemm(module: ModuleType) -> list[str]:
    """The router asks `te_general_gemm is not None`, but without Transformer Engine the name was never defined (NameError)."""
    if hasattr(module, "te_general_gemm"):
        return []
    module.te_general_gemm = None  # type: ignore[attr-defined]
    return ["te_general_gemm"]


def _give_split_sizes_as_numbers(module: ModuleType) -> list[str]:
    """The all-to-all dispatcher turns split sizes into numbers on their way off the GPU; gloo wants numbers as well."""

    def move(tensor: object, as_numpy: bool = False, record_stream: bool = False) -> object:
        return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor

    return _replace(module, maybe_move_tensor_to_cpu=move)


def _replace(module: ModuleType, **values: object) -> list[str]:
    """Rebind those of the names that `module` has; returns them."""
    found = [name for name in values if hasattr(module, name)]
    for name in found:
        setattr(module, name, values[name])
    return found


REBINDINGS: dict[str, Callable[[ModuleType], list[str]]] = {
    "megatron.core.jit": _use_no_jit_fuser,
    "megatron.core.tensor_parallel.random": _use_cpu_generator,
    "megatron.core.transformer.moe.moe_utils": _define_te_general_gemm,
    "megatron.core.transformer.moe.token_dispatcher": _give_split_sizes_as_numbers,
}
