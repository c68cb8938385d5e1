"""Tests that run on every rank of a gloo world: `@in_world(2)`."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from megalm.testing import run_distributed


def in_world(world_size: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run the decorated test function on all ranks of a world; parameters and fixtures travel by pickle.

    The workers have Megatron-Core imported already and see no GPU, so such a test means the same on every machine.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**arguments: Any) -> None:
            run_distributed(_call_undecorated, world_size, test.__module__, test.__name__, arguments)

        return run

    return decorate


def _call_undecorated(module: str, name: str, arguments: dict[str, Any]) -> None:
    getattr(importlib.import_module(module), name).__wrapped__(**arguments)
