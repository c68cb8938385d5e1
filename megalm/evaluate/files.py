"""The files of an evaluation's directory that others read, too."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megalm import atomic
from megalm.evaluate.bootstrap import Float64, Score

FILE_NAME = "results.json"


def write_draws(folder: Path, label: str, found: Mapping[str, Score]) -> None:
    """Keep what each metric scored on the selections of questions, by which evaluations are compared pair by pair."""
    draws: dict[str, Any] = {name: score.draws for name, score in found.items() if score.draws is not None}
    path = _draws_path(folder, label)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.open_atomic(path) as file:
        np.savez(file, **draws)


def read_draws(folder: Path, label: str) -> dict[str, Float64]:
    """What `write_draws` has kept, nothing where it has not."""
    try:
        with np.load(_draws_path(folder, label), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


def _draws_path(folder: Path, label: str) -> Path:
    return folder / "draws" / f"{file_name_of(label)}.npz"


def file_name_of(label: str) -> str:
    """What a task's files are called, less their suffix."""
    return label.replace("/", "_").replace(":", "_")
