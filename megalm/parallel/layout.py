"""The layout of a run: sizes of each parallel axis, process groups, and this process's coordinates."""

import atexit
import datetime
import os
import re
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from megalm.config.schema import ParallelConfig
from megalm.errors import UserError
from megalm.parallel import cpu
from megalm.parallel.backend import backend_for
from megalm.parallel.worlds import World

cpu.install()

from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402

from megalm.parallel.groups import shared_groups  # noqa: E402

FLIGHT_RECORDER = ("TORCH_FR_BUFFER_SIZE", "2000")
"""The variable, to be set before the first group, by which torch keeps its last collectives, for gloo too, and how many."""

_LIBRARY_VARIABLE = re.compile(r"_[A-Z]")


@dataclass(frozen=True)
class Layout:
    """Sizes, groups and coordinates; passed around instead of global groups.

    without_memory: the tensors made under it have shapes only (`megalm plan`), so there is nothing to draw or read.
    """

    config: ParallelConfig
    groups: ProcessGroupCollection
    device: torch.device
    rank: int
    world_size: int
    without_memory: bool = False
    library_state: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What Megatron-Core keeps of the layout in variables of its own."""

    def activate(self) -> None:
        """Let Megatron-Core's process-global state be this layout's.

        With two layouts in a process it is that of the one made last, and some of the library goes by it unasked: engines
        call this before they let the library work.
        """
        vars(parallel_state).update(self.library_state)

    @property
    def tp_rank(self) -> int:
        """Coordinate on the tensor-parallel axis."""
        return self.groups.tp.rank()

    @property
    def tp_size(self) -> int:
        """Ranks on the tensor-parallel axis."""
        return self.groups.tp.size()

    @property
    def pp_rank(self) -> int:
        """Pipeline stage of this process."""
        return self.groups.pp.rank()

    @property
    def pp_size(self) -> int:
        """Pipeline stages."""
        return self.groups.pp.size()

    @property
    def vp_size(self) -> int:
        """Parts of the model on each process: more than one where the pipeline is interleaved."""
        return self.config.virtual_pipeline_model_parallel_size

    @property
    def cp_rank(self) -> int:
        """Coordinate on the context-parallel axis."""
        return self.groups.cp.rank()

    @property
    def cp_size(self) -> int:
        """Ranks that share each sequence."""
        return self.groups.cp.size()

    @property
    def ep_rank(self) -> int:
        """Coordinate on the expert-parallel axis."""
        return self.groups.ep.rank()

    @property
    def ep_size(self) -> int:
        """Ranks that share the experts; the axis lies across the data-parallel and context-parallel ranks."""
        return self.groups.ep.size()

    @property
    def dp_rank(self) -> int:
        """Coordinate on the data-parallel axis."""
        return self.groups.dp.rank()

    @property
    def dp_size(self) -> int:
        """Copies of the model."""
        return self.groups.dp.size()

    @property
    def is_first_stage(self) -> bool:
        """Whether this process holds the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this process holds the output layer and computes the loss."""
        return self.pp_rank == self.pp_size - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of the last stage in this process's pipeline."""
        return dist.get_global_rank(self.groups.pp, self.pp_size - 1)

    def describe(self) -> str:
        """Short name such as `TP2+SP x PP2 x DP1`."""
        sequence = "+SP" if self.config.sequence_parallel else ""
        virtual = f" (VP{self.vp_size})" if self.vp_size > 1 else ""
        context = f" x CP{self.cp_size}" if self.cp_size > 1 else ""
        expert = f" (EP{self.ep_size})" if self.ep_size > 1 else ""
        zero = f" + ZeRO-{self.config.zero_stage}" if self.config.zero_stage else ""
        return f"TP{self.tp_size}{sequence} x PP{self.pp_size}{virtual}{context} x DP{self.dp_size}{expert}{zero}"


def init_process_group(
    backend: str = "auto", timeout_minutes: float = 30.0, world: World | None = None
) -> torch.device:
    """Join `world`, or the one that the environment describes (RANK, WORLD_SIZE, ...; default one process).

    Returns this process's device. backend: see `backend_for`. UserError for more processes than GPUs.
    """
    backend = backend_for(backend)
    os.environ.setdefault(*FLIGHT_RECORDER)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", _local_gpu())
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=timeout_minutes)
        bound = device if backend == "nccl" else None  # else NCCL guesses the device from the rank
        if world is not None:
            place = {"store": world.own_store, "rank": world.rank, "world_size": world.size}
            dist.init_process_group(backend, timeout=timeout, device_id=bound, **place)  # type: ignore[arg-type]
        elif "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout, device_id=bound)
        else:
            dist.init_process_group(
                backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1, device_id=bound
            )
        if backend == "gloo":
            atexit.register(_leave)
    return device


def _leave() -> None:
    """Destroy what is left of the world before the interpreter ends.

    A thread of gloo that drops the tensors of its last collective later than that ends the process with SIGABRT, `terminate
    called without an active exception` (pytorch/pytorch#190489).
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def _local_gpu() -> int:
    number, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= count:
        raise UserError(
            f"process {number} (counted from 0) of this machine finds {count} GPU(s): start at most {count} here, "
            "or set CUDA_VISIBLE_DEVICES= (empty: run on the CPU)"
        )
    return number


def create_layout(config: ParallelConfig, seed: int = 1234) -> Layout:
    """Make the process groups of `config` over the whole world and seed dropout.

    Layouts made before stay of use: see `Layout.activate`.
    """
    device = init_process_group(config.backend, config.timeout_minutes)
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    with shared_groups(datetime.timedelta(minutes=config.timeout_minutes)):
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tensor_model_parallel_size,
            pipeline_model_parallel_size=config.pipeline_model_parallel_size,
            context_parallel_size=config.context_parallel_size,
            expert_model_parallel_size=config.expert_model_parallel_size,
            # the library's own gloo twins of every group serve its optimizer checkpoints, which we do not use
            create_gloo_process_groups=False,
        )
    tensor_parallel.random.initialize_rng_tracker(force_reset=True)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Layout(
        config=config,
        groups=ProcessGroupCollection.use_mpu_process_groups(),
        device=device,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        library_state=_library_state(),
    )


def _library_state() -> dict[str, Any]:
    """The variables of the library that belong to a layout; its scratch memory serves all of them."""
    return {
        name: value
        for name, value in vars(parallel_state).items()
        if _LIBRARY_VARIABLE.match(name) and not name.startswith("_GLOBAL_")
    }
