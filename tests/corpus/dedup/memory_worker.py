"""Runs the stages of a collective in one process and prints its peak memory in bytes."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

from datatrove.data import Document

from megalm.corpus.dedup import runs
from megalm.corpus.dedup.lines import DuplicateLines
from megalm.corpus.dedup.steps import ExactDuplicates, NearDuplicates
from megalm.corpus.mix import step as mix_step
from megalm.corpus.shards import WriteShards
from tests.memory import peak_bytes

STEPS = {
    "exact": ExactDuplicates,
    "near": lambda: NearDuplicates(NearDuplicates.Settings(ngram=2, verify=True)),
    "lines": DuplicateLines,
    "mix": lambda: mix_step.Mix(mix_step.Mix.Settings(shard_bytes=1 << 20)),
}


def documents(count: int, seed: int) -> Iterator[Document]:
    """Made one at a time; every tenth is a near-duplicate of the one before, and ten have the same last line."""
    rng = random.Random(seed)
    words: list[str] = []
    for i in range(count):
        words = [*words[:29], "new"] if i % 10 == 9 else [f"{rng.getrandbits(32):x}" for _ in range(30)]
        yield Document(" ".join(words) + f"\nlast line {seed} {i // 10}", f"document-{seed}-{i}")


def main(name: str, count: int, shards: int, folder: Path) -> None:
    runs.RUN_BYTES = mix_step.RUN_BYTES = 1 << 18
    for shard in range(shards):
        for _ in WriteShards(folder / "source").run(documents(count // shards, shard), shard, shards):
            pass
    for stage in STEPS[name]().stages(folder / "source", folder / "work", folder / "target", shards):
        for rank in range(stage.tasks):
            data = None
            for step in stage.pipeline:
                data = step.run(data, rank, stage.tasks)
            for _ in data:
                pass
    print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
