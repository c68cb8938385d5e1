"""Runs collectives and steps on documents as the executor would: shards in, stages in order, shards out."""

from collections.abc import Sequence
from pathlib import Path

import zstandard
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.utils.logging import logger

from megalm import atomic
from megalm.corpus.shards import SUFFIX, read_shard, shard_paths, to_line
from megalm.corpus.step import Collective


def write_shards(folder: Path, documents: Sequence[Document], shards: int) -> Path:
    """Deal `documents` out to so many shards of `folder`."""
    for shard in range(shards):
        lines = b"".join(to_line(document) for document in documents[shard::shards])
        atomic.write_bytes(folder / f"{shard:05d}{SUFFIX}", zstandard.compress(lines))
    return folder


def run_collective(
    collective: Collective,
    documents: Sequence[Document],
    folder: Path,
    shards: int = 1,
    workers: int = 1,
    times: int = 1,
) -> list[Document]:
    """The documents that the stages leave in `folder`/target; `times` is how often each task is run."""
    logger.remove()
    source = write_shards(folder / "source", documents, shards)
    for stage in collective.stages(source, folder / "work", folder / "target", shards):
        for _ in range(times):
            LocalPipelineExecutor(
                pipeline=list(stage.pipeline),
                tasks=stage.tasks,
                workers=workers,
                start_method="fork",
                skip_completed=False,
                logging_dir=str(folder / "logs" / stage.name),
            ).run()
    return read_all(folder / "target")


def read_all(folder: Path) -> list[Document]:
    """The documents of all shards."""
    return [document for path in shard_paths(folder) for document in read_shard(path)]
