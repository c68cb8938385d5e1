"""What holds for every test."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.slurm.cluster import Cluster

# Several processes share the cores; set before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def slurm() -> "Iterator[Cluster]":
    """A SLURM cluster of four nodes on this machine, started once a session; skips where SLURM is not installed."""
    from tests.slurm.cluster import PACKAGES, Cluster, missing_programs

    if absent := missing_programs():
        pytest.skip(f"{', '.join(absent)} not installed (Debian and Ubuntu: apt install {PACKAGES})")
    with Cluster() as cluster:
        yield cluster
