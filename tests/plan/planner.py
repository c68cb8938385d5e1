"""Plans made in a process of their own, which all tests share: the test process stays without a fake world."""

import atexit
import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from megalm.config import Config, parse_config

VOCABULARY = 509  # prime: no number of ranks divides it
SEQUENCE = 128


def small_config(*overrides: str, preset: str = "llama-tiny") -> Config:
    """A model of 4 layers, hidden 128, in fp32; steps of 16 samples."""
    sections: dict[str, Any] = {
        "model": {
            "preset": preset,
            "num_layers": 4,
            "hidden_size": 128,
            "ffn_hidden_size": 352,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "vocab_size": VOCABULARY,
            "max_sequence_length": SEQUENCE,
        },
        "batch": {"seq_length": SEQUENCE, "micro_batch_size": 2, "global_batch_size": 16},
    }
    return parse_config(sections, overrides)


def in_planner(function: Any, *arguments: Any) -> Any:
    """Call a module-level function in the planning process."""
    return _pool().submit(function, *arguments).result(timeout=550)


def planned(
    config: Config, world_size: int = 1, device: str = "cpu", memory: int | None = None, hints: bool = False
) -> Any:
    """`megalm.plan.run.plan` on one node."""
    return in_planner(_plan, config, world_size, device, memory, hints)


def _plan(config: Config, world_size: int, device: str, memory: int | None, hints: bool) -> Any:
    from megalm.plan.run import plan

    return plan(config, 1, world_size, device, memory, hints)


@functools.cache
def _pool() -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)
    atexit.register(pool.shutdown)
    return pool


def _start() -> None:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
