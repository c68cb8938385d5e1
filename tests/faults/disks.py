"""Real storage that takes no more: a small file system in memory, or a limit on the size of files where none can be mounted."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from megalm.config import Config

FILLER = "filler"
DISK_BYTES = 12 << 20


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own at `folder`, of DISK_BYTES."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "megalm-test", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Nothing can be written to the file or directory `path` in the block, not by the superuser either."""
    try:
        subprocess.run(["mount", "--bind", str(path), str(path)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(path)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(config: Config) -> None:
    """Leave no room on the disk of the run directory."""
    with open(Path(config.run.dir) / FILLER, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def make_room(config: Config) -> None:
    (Path(config.run.dir) / FILLER).unlink()


def limit_files(_: Config) -> None:
    """No file of this process may grow beyond a size that has room for a pulse of the watch."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def lift_limit(_: Config) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def refuse_logs(_: Config) -> None:
    """Let the open logs of this process be a device that is always full."""
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in _open_logs():
        os.dup2(full, descriptor)


def take_logs_again(config: Config) -> None:
    """Give metrics.jsonl, the only one that is written later, its file back."""
    descriptors = [int(name) for name in os.listdir("/proc/self/fd") if _target(name) == "/dev/full"]
    file = os.open(Path(config.run.dir) / "metrics.jsonl", os.O_WRONLY | os.O_APPEND)
    for descriptor in descriptors:
        os.dup2(file, descriptor)


def _open_logs() -> list[int]:
    ends = ("metrics.jsonl",)
    return [int(name) for name in os.listdir("/proc/self/fd") if _target(name).endswith(ends)]


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""
