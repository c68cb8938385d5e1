"""What a file that appears whole or not at all may replace."""

import errno
import os
from pathlib import Path

import pytest

from megalm import atomic
from megalm.atomic import open_atomic, write_text


def test_a_pipe_or_device_is_written_to_and_stays_one(tmp_path: Path) -> None:
    """As for --output /dev/null: a renamed file would take the device's place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "text")
        assert os.read(reader, 10) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo() and os.listdir(tmp_path) == ["pipe"]


def test_a_link_stays_one_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_what_raises_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), open_atomic(tmp_path / "file", "w") as file:
        file.write("new")
        1 / 0  # noqa: B018
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_storage_that_fails_is_told_from_other_errors(tmp_path: Path) -> None:
    import torch

    assert atomic.storage_failure(ValueError("No space left on device")) is None
    assert atomic.storage_failure(FileNotFoundError(errno.ENOENT, "No such file")) is None
    with pytest.raises(OSError) as full:
        Path("/dev/full").write_text("text")
    assert "No space left on device" in str(atomic.storage_failure(full.value))
    later = RuntimeError("the save failed")
    later.__cause__ = full.value
    assert "No space left on device" in str(atomic.storage_failure(later))
    with pytest.raises(RuntimeError) as of_torch:
        torch.save({"a": torch.ones(1 << 16)}, "/dev/full")
    assert atomic.storage_failure(of_torch.value) is not None
