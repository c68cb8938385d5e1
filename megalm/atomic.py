"""Files appear whole or not at all: written under a temporary name, synced, then renamed."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megalm.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where no more can be written."""


STORAGE = (*FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOTDIR)
"""What it says where storage fails that has worked before; a run can wait for it to come back."""


_TORCH_WRITES = re.compile(r"PytorchStreamWriter failed|inline_container\.cc:\d+\] \. unexpected pos")


def storage_failure(error: BaseException) -> str | None:
    """What is wrong with the storage, where that is what `error` or one that led to it says; else None."""
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in STORAGE:
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror}"
        if _TORCH_WRITES.search(str(error)):  # torch keeps the system's answer to itself
            return "a file could not be written"
        error = error.__cause__ or error.__context__ or error
    return None


@contextlib.contextmanager
def name_full_disk(folder: str | Path) -> Iterator[None]:
    """Put `folder` as the file's name into an error in the block that says that a disk is full, but not which."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(folder)
        raise


@contextlib.contextmanager
def open_atomic(path: str | Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file that becomes `path` when the block ends well, and leaves nothing behind when it raises.

    Where `path` is a link, what it points to is replaced; a device or a pipe, such as /dev/null, is written to.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        with open(path, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        return
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with (
            name_full_disk(path.parent),
            open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that the user gave
        raise
    sync_directory(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) in one step."""
    with open_atomic(path, "w") as file:
        file.write(text)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data` in one step."""
    with open_atomic(path, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `path` when the block ends well, and is removed when it raises.

    Files in it are synced before. Raises UserError where `path` is there already and not an empty directory.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists; choose another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
            else:
                sync_directory(file)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: str | Path) -> None:
    """Make renames inside the directory `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
