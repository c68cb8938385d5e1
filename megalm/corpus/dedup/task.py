"""The base class of pipeline steps that read documents or files and leave files, and yield no documents."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep


class Task(PipelineStep):
    """The last step of a stage that makes something out of documents, or out of files of earlier stages."""

    type = "corpus"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # type: ignore[override]
        """Do the work of task `rank` once it is asked for documents, of which none come out."""
        self.work(data or (), rank, world_size)
        yield from ()

    @abstractmethod
    def work(self, documents: Iterable[Document], rank: int, world_size: int) -> None:
        """Leave this task's files, each whole or absent."""
