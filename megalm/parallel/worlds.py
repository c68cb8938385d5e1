"""The worlds of a run: processes parted into several, each with process groups of its own, that know how to reach each other."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


@dataclass(frozen=True)
class World:
    """The world that this process belongs to. sizes: ranks of each by name, the one that leads first. store: all reach it."""

    name: str
    rank: int
    sizes: Mapping[str, int]
    store: dist.Store

    @property
    def leads(self) -> bool:
        """Whether this is the world that tells the others what to do."""
        return self.name == next(iter(self.sizes))

    @property
    def size(self) -> int:
        """Ranks of this world."""
        return self.sizes[self.name]

    @property
    def own_store(self) -> dist.Store:
        """The store under a name of this world's, so that its groups meet no others."""
        return dist.PrefixStore(f"world {self.name}", self.store)

    def place_beside(self, other: str) -> tuple[int, int]:
        """This process's number, and how many there are, among the leading world's ranks and those of `other` behind them."""
        leaders = next(iter(self.sizes.values()))
        return self.rank + (0 if self.leads else leaders), leaders + self.sizes[other]


def find_world(sizes: Mapping[str, int], timeout: timedelta) -> World:
    """This process's place, as its launcher gave it (RANK, WORLD_SIZE, ...), where the worlds follow each other by rank.

    Joins the store that all processes reach; collective in that its owner has to come. sizes: add up to WORLD_SIZE.
    """
    store, rank, _ = next(iter(rendezvous("env://", timeout=timeout)))
    for name, size in sizes.items():
        if rank < size:
            return World(name, rank, sizes, store)
        rank -= size
    raise AssertionError(f"WORLD_SIZE {os.environ['WORLD_SIZE']} is not the sum of {dict(sizes)}")
