"""Documents of words that no other document has are removed, however the corpus is cut into shards."""

from pathlib import Path

import pytest
from datatrove.data import Document

from megalm.corpus.clean.rare_words import RareWords
from megalm.corpus.shards import WriteShards, read_shard, shard_paths
from tests.corpus.documents import prose

GARBLED = " ".join(f"xq{chr(97 + n % 26)}{chr(97 + n // 26)}z" for n in range(60))


def survivors(folder: Path, texts: list[str], tasks: int, **options: object) -> list[str]:
    """What the step keeps of documents in `tasks` shards, and the reasons counted."""
    documents = [Document(text, str(number)) for number, text in enumerate(texts)]
    for rank in range(tasks):
        list(WriteShards(folder / "in").run(iter(documents[rank::tasks]), rank, tasks))
    step = RareWords(RareWords.Settings(**options))
    for stage in step.stages(folder / "in", folder / "work", folder / "out", tasks):
        for rank in range(stage.tasks):
            data = None
            for part in stage.pipeline:
                data = part.run(data, rank, stage.tasks)
            list(data)
    return sorted((found.id for path in shard_paths(folder / "out") for found in read_shard(path)), key=int)


@pytest.mark.parametrize("tasks", [1, 3])
def test_garbled_documents_go_and_common_ones_stay(tmp_path: Path, tasks: int):
    texts = [prose(seed, 6) for seed in range(6)]
    half = texts[0] + " " + GARBLED
    assert survivors(tmp_path, [*texts, GARBLED, half, "12 34", ""], tasks) == [*map(str, range(6)), "8", "9"]
    assert "7" in survivors(tmp_path / "b", [*texts, GARBLED, half], tasks, max_share=0.6)


def test_words_in_enough_documents_are_common(tmp_path: Path):
    assert survivors(tmp_path, [GARBLED] * 3, 2) == ["0", "1", "2"]
    assert survivors(tmp_path / "b", [GARBLED] * 3, 2, min_documents=4) == []
    assert survivors(tmp_path / "c", [GARBLED, GARBLED.upper()], 2, min_documents=2) == ["0", "1"]
