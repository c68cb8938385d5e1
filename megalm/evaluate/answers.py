"""What a model has answered so far, on disk: an evaluation that was cut off goes on from there."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from megalm import atomic
from megalm.errors import UserError

FILE_NAME = "answers.jsonl"
Answer = list[Any]
"""[log-probability, is greedy], or the texts written."""


class Answers:
    """Answers by the key of their question: in memory on every rank, in a file of one JSON line each by rank 0."""

    def __init__(self, path: Path | None, model: str) -> None:
        """Read what is there; without a path there is no file. A last line that was cut off is dropped. model: what tells models apart. Collective."""
        self._model = model
        self._file: IO[bytes] | None = None
        self._known: dict[str, Answer] = {}
        if path is None:
            return
        shared: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                self._known = _read(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            except UserError as error:
                shared = [str(error)]
            else:
                shared = [self._known]
        if dist.get_world_size() > 1:
            dist.broadcast_object_list(shared)
        if isinstance(shared[0], str):
            raise UserError(shared[0])
        self._known = shared[0]

    def key(self, kind: str, *parts: Any) -> str:
        """What a question is known by, whatever task it belongs to."""
        told = json.dumps([self._model, kind, *parts], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    def get(self, key: str) -> Answer | None:
        """The answer, where it is known."""
        return self._known.get(key)

    def add(self, found: Mapping[str, Answer]) -> None:
        """Keep answers: when this returns they are on disk."""
        self._known.update(found)
        if self._file is not None and found:
            lines = "".join(json.dumps([key, answer]) + "\n" for key, answer in found.items())
            with atomic.name_full_disk(self._file.name):
                self._file.write(lines.encode())
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _read(path: Path) -> dict[str, Answer]:
    """The answers in a file, which loses what stands behind its last whole line."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return dict(_parsed(path, data[:whole].splitlines()))


def _parsed(path: Path, lines: Sequence[bytes]) -> Iterable[tuple[str, Answer]]:
    for number, line in enumerate(lines, start=1):
        try:
            key, answer = json.loads(line)
            yield str(key), list(answer)
        except (ValueError, TypeError):
            raise UserError(
                f"{path} line {number} is damaged; delete the file, what it holds is computed anew"
            ) from None
