"""Puts finished datasets in their places, so that a reader never finds files of two datasets under one prefix."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megalm import atomic
from megalm.dataset.checksums import crc_path
from megalm.dataset.indexed import bin_path, idx_path
from megalm.dataset.labels import labels_path
from megalm.dataset.loss_mask import mask_path
from megalm.dataset.origins import origins_path
from megalm.dataset.sidecar import read_sidecar, sidecar_path
from megalm.dataset.values import values_path
from megalm.errors import UserError
from megalm.tasks import ends_on_sigterm

# A dataset is there when its index is: that goes first and comes last.
IN_ORDER = idx_path, sidecar_path, crc_path, mask_path, origins_path, labels_path, values_path, bin_path


def check_targets(prefixes: Sequence[str | Path]) -> None:
    """Raise UserError where one of `prefixes` names no file, or something that is no record of a dataset would be replaced."""
    for prefix in prefixes:
        if not Path(prefix).name:
            raise UserError(
                f"output prefix '{prefix}' is a directory; add a name, such as {Path(prefix) / 'data'}"
            )
        read_sidecar(prefix)


def remove_dataset(prefix: str | Path) -> None:
    """Remove what lies at `prefix`, if anything does."""
    for path_of in IN_ORDER:
        path_of(prefix).unlink(missing_ok=True)


def move_dataset(source: str | Path, target: str | Path) -> None:
    """Give the dataset at `source` another prefix in the same file system, in place of what is there."""
    remove_dataset(target)
    for path_of in reversed(IN_ORDER):
        if path_of(source).exists():
            os.replace(path_of(source), path_of(target))


@contextlib.contextmanager
def staged(output: str | Path) -> Iterator[Path]:
    """Yield an empty folder beside `output` that is removed at the end, and by the next caller after a kill."""
    folder = Path(output).with_name(f".{Path(output).name}.staged")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with ends_on_sigterm():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(found: Mapping[str | Path, Path]) -> None:
    """Move datasets to their prefixes (keys), from where they were made."""
    for target, source in found.items():
        move_dataset(source, target)
    for folder in {Path(target).parent for target in found}:
        atomic.sync_directory(folder)
