"""What holds for every test: threads, how many run side by side, and what is compiled meanwhile."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from megalm.launch import available_cores
from tests import operators as compiled

if TYPE_CHECKING:
    from tests.slurm.cluster import Cluster

# Several processes share the cores; set before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Directories and files whose tests start worlds of two to eight processes: two such worlds at a time on two cores are slower
# than one after the other.
OF_WORLDS = {
    "checkpoint",
    "convert",
    "engine",
    "generate",
    "kill",
    "model",
    "parallel",
    "parity",
    "plan",
    "train",
    "test_launch.py",
    "test_testing.py",
}
MEMORY_OF_A_WORKER = 4 << 30  # pytest, with torch imported, and the worlds of processes that its tests start


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes that share the tests under `-n auto`."""
    return max(1, min(available_cores(), psutil.virtual_memory().total // MEMORY_OF_A_WORKER))


def pytest_configure(config: pytest.Config) -> None:
    """Name this run of pytest, and end with it what it began."""
    if not hasattr(config, "workerinput"):
        os.environ[compiled.RUN] = str(os.getpid())
        config.add_cleanup(compiled.end)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of worlds of processes run one after another beside the others, those that wait for a compiler last."""
    items.sort(key=lambda item: "operators" in item.fixturenames)
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).parts
        if place[0] in OF_WORLDS:
            item.add_marker(pytest.mark.xdist_group("worlds"))
        elif "slurm" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("slurm"))
    wanted = bool(items) and "operators" in items[-1].fixturenames
    first = getattr(config, "workerinput", {}).get("workerid", "gw0") == "gw0"
    if wanted and first and not config.option.collectonly:
        compiled.start()


@pytest.fixture(scope="session")
def operators() -> None:
    """Waits until DeepSpeed's C++ operators are compiled, or have turned out not to compile here."""
    with compiled.locked():
        pass


@pytest.fixture(scope="session")
def slurm() -> "Iterator[Cluster]":
    """A SLURM cluster of four nodes on this machine, started once a session; skips where SLURM is not installed."""
    from tests.slurm.cluster import PACKAGES, Cluster, missing_programs

    if absent := missing_programs():
        pytest.skip(f"{', '.join(absent)} not installed (Debian and Ubuntu: apt install {PACKAGES})")
    with Cluster() as cluster:
        yield cluster
