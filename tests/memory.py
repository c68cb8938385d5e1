"""The memory that this process had in use at its peak."""

from pathlib import Path


def peak_bytes() -> int:
    """Resident memory at its peak since the program began (Linux).

    `getrusage` would begin with the peak of the process that started this one.
    """
    return _kilobytes("VmHWM") << 10


def reset_peak() -> int:
    """Let the peak begin anew with the memory now in use, and return that in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _kilobytes("VmRSS") << 10


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
