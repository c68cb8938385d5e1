"""What holds for every test: threads, and what is compiled meanwhile."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from absl import logging as absl_logging
from hypothesis import settings

from tests import operators as compiled

if TYPE_CHECKING:
    from tests.slurm.cluster import Cluster

# Several processes share the cores; set before torch is imported, which reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CXX", str(Path(__file__).with_name("cxx.sh")))
WAIT = 2400
"""Seconds for a test that waits for a compiler beside all others."""

# The same examples everywhere, however slow the machine is.
settings.register_profile("megalm", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("megalm")


# absl, which tensorboard brings, keeps the sys.stderr that it found and closes it when logging is configured anew (submitit
# does) unless it is still that: pytest's own, while a test has another one.
absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


def pytest_configure(config: pytest.Config) -> None:
    """Name this run of pytest, and end with it what it began."""
    os.environ[compiled.RUN] = str(os.getpid())
    config.add_cleanup(compiled.end)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that wait for a compiler come last, and wait for as long as it takes on a busy machine."""
    items.sort(key=lambda item: "operators" in item.fixturenames)
    for item in items:
        if "operators" in item.fixturenames:
            item.add_marker(pytest.mark.timeout(WAIT))
    wanted = bool(items) and "operators" in items[-1].fixturenames
    if wanted and not config.option.collectonly:
        compiled.start()


@pytest.fixture(scope="session")
def operators() -> None:
    """Waits until DeepSpeed's C++ operators are compiled, or have turned out not to compile here."""
    compiled.wait()


@pytest.fixture(scope="session")
def slurm() -> "Iterator[Cluster]":
    """A SLURM cluster of four nodes on this machine, started once a session; skips where SLURM is not installed."""
    from tests.slurm.cluster import PACKAGES, Cluster, missing_programs

    if absent := missing_programs():
        pytest.skip(f"{', '.join(absent)} not installed (Debian and Ubuntu: apt install {PACKAGES})")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(slurm: "Cluster", monkeypatch: pytest.MonkeyPatch) -> "Iterator[Cluster]":
    """`slurm` as this process's own, with what tests import importable in jobs; no job is left behind."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    yield slurm
    slurm.clear()
