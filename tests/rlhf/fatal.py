"""A run of reinforcement learning that kills itself in one of its phases: python -m tests.rlhf.fatal CONFIG PHASE."""

import itertools
import os
import signal
import sys
from typing import Any

from megalm.checkpoint import CheckpointWriter
from megalm.config import load_config
from megalm.engine.megatron import MegatronEngine
from megalm.launch import guard
from megalm.rlhf import critic
from megalm.rlhf.copies import Copies
from megalm.rlhf.rollout import Rollout
from tests.rlhf.runs import learn

# What is called in each phase of the second step of three, and how often before; a step has 2 x 2 updates of actor and critic.
PHASES: dict[str, tuple[Any, str, int]] = {
    "write": (Copies, "__call__", 1),
    "generate": (Rollout, "answer", 1),
    "score": (critic, "token_values", 1),
    "train": (MegatronEngine, "step", 8 + 3),
    "save": (CheckpointWriter, "_publish", 1),
}


def main(config: str, phase: str) -> None:
    """Learn until the phase comes."""
    owner, call, count = PHASES[phase]
    function, left = getattr(owner, call), itertools.count(count, -1)

    def fatal(*positional: Any, **keywords: Any) -> Any:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*positional, **keywords)

    setattr(owner, call, fatal)
    with guard():
        learn(load_config(config))


if __name__ == "__main__":
    main(*sys.argv[1:])
