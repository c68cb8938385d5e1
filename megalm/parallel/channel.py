"""Calls of the leading world to another one: a name and arguments go over, a result comes back to every rank that leads."""

import pickle
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megalm import progress
from megalm.parallel.bridge import bridge
from megalm.parallel.worlds import World

FOREVER = timedelta(days=365)
"""A world waits for calls as long as the other one trains. A lost peer is noticed at once, by its closed connection."""


class Channel:
    """Between the leading world and the one called `other`; all methods are collective over those of the world they are for.

    What is passed is pickled: both ends are processes of one run.
    """

    def __init__(self, world: World, other: str) -> None:
        """Collective over both worlds."""
        rank, size = world.place_beside(other)
        self.world, self.other = world, other
        self.first = size - world.sizes[other]
        """The other world's first rank, who speaks for it."""
        self.group = bridge(self._store("calls"), rank, size, FOREVER, torch.device("cpu"))

    def over(self, device: torch.device, timeout: timedelta) -> Any:
        """A group of the same ranks for tensors on `device`. Collective over both worlds."""
        if device.type == "cpu" or dist.get_backend() == "gloo":
            return self.group
        return bridge(self._store("tensors"), self.group.rank(), self.group.size(), timeout, device)

    def call(self, name: str, *arguments: Any) -> Any:
        """What the other world's handler of this name returns. On ranks of the leading world; the first one's arguments count."""
        self.begin(name, *arguments)
        return self.result()

    def begin(self, name: str, *arguments: Any) -> None:
        """Let the other world begin with a call, whose result is to be taken before the next one."""
        self._pass((name, arguments), 0)

    def result(self) -> Any:
        """Of the call that was begun."""
        return self._pass(None, self.first)

    def close(self) -> None:
        """Let the other world end, and wait until it is about to."""
        self._pass(None, 0)
        self.result()

    def serve(self, handlers: Mapping[str, Callable[..., Any]]) -> None:
        """Answer calls until the leading world closes. On ranks of the other world; all of them run the handler."""
        while (call := self._pass(None, 0)) is not None:
            name, arguments = call
            progress.beat(name)
            self._pass(handlers[name](*arguments), self.first)
            progress.finish_step()
        self._pass(None, self.first)

    def _pass(self, message: Any, root: int) -> Any:
        """The message of bridge rank `root`, on all ranks."""
        speaks = self.group.rank() == root
        data = torch.frombuffer(bytearray(pickle.dumps(message) if speaks else b"-"), dtype=torch.uint8)
        size = torch.tensor([len(data)])
        self.group.broadcast(size, root).wait()
        if not speaks:
            data = torch.empty(int(size), dtype=torch.uint8)
        self.group.broadcast(data, root).wait()
        return message if speaks else pickle.loads(data.numpy().tobytes())

    def _store(self, purpose: str) -> dist.Store:
        return dist.PrefixStore(f"{self.other} {purpose}", self.world.store)
