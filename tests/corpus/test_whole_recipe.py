"""A recipe with every step that needs the whole corpus gives the same bytes however its work is dealt out."""

import itertools
import json
import os
import random
import signal

import pytest

from megalm.corpus.build import build_corpus
from megalm.corpus.recipe import parse_recipe
from megalm.corpus.shards import read_shard, shard_paths
from tests.corpus.dedup.texts import pair_of_similarity, random_text


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rng = random.Random(0)
    questions = [random_text(rng, 20) for _ in range(5)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps({"q": q}) + "\n" for q in questions))
    texts = [random_text(rng, 80) for _ in range(60)]
    texts += [text.upper() for text in texts[:20]]  # exact copies
    for _ in range(20):
        texts += pair_of_similarity(rng, 95, 3)  # near-duplicates
    texts = [f"{text}\nshared footer of every page" for text in texts]
    texts += [f"{random_text(rng, 40)} {question} {random_text(rng, 40)}" for question in questions]
    rng.shuffle(texts)
    for name, part in (("web", texts[:100]), ("wiki", texts[100:])):
        lines = [json.dumps({"text": text}) for text in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def build(inputs, output, tasks: int, workers: int):
    recipe = {
        "output": str(output),
        "tasks": tasks,
        "executor": {"workers": workers},
        "keep_removed": True,
        "sources": [
            {"kind": "jsonl", "name": name, "path": str(inputs / f"{name}.jsonl")} for name in ("web", "wiki")
        ],
        "steps": [
            {"exact_duplicates": {"prefer_sources": ["wiki"]}},
            {"near_duplicates": {"ngram": 1, "verify": True, "prefer_sources": ["wiki"]}},
            "duplicate_lines",
            {"decontaminate": {"benchmarks": [{"path": str(inputs / "quiz.jsonl"), "keys": ["q"]}]}},
            {"mix": {"splits": "80,20"}},
        ],
    }
    report = build_corpus(parse_recipe(recipe))
    return report, {path.name: path.read_bytes() for path in shard_paths(output / "documents")}


@pytest.mark.slow
def test_all_steps_together_and_any_dealing_out_gives_the_same_bytes(inputs, tmp_path):
    report, shards = build(inputs, tmp_path / "a", tasks=2, workers=1)
    removed = {step["step"]: step["removed"] for step in report["steps"]}
    assert removed["exact_duplicates"] == {"exact_duplicates.copy": 20}
    assert removed["near_duplicates"] == {"near_duplicates.copy": 20}
    assert removed["decontaminate"] == {"decontaminate.hit": 5}
    assert report["documents"] == 60 + 20
    documents = [
        document for path in shard_paths(tmp_path / "a" / "documents") for document in read_shard(path)
    ]
    assert len(documents) == 80
    assert sum("shared footer" in document.text for document in documents) == 1
    gone = [d for path in sorted((tmp_path / "a" / "removed").rglob("*.zst")) for d in read_shard(path)]
    copies = [d for d in gone if d.metadata["removed_by"] == "near_duplicates"]
    assert len(copies) == 20 and all(d.metadata["duplicate_of"] for d in copies)
    other_report, other = build(inputs, tmp_path / "b", tasks=5, workers=2)
    assert other == shards
    assert {step["step"]: step["removed"] for step in other_report["steps"]} == removed


def killed_build(inputs, output, renames: int) -> int:
    """Build in a forked process that kills itself before a rename when so many are done; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            replace, left = os.replace, itertools.count(renames, -1)

            def fatal(source, target, **options):
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target, **options)

            os.replace = fatal
            build(inputs, output, tasks=1, workers=1)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_build_killed_again_and_again_in_every_stage_gives_the_same_bytes(inputs, tmp_path):
    """Each time somewhat later, for a task has several renames; the next build goes on from what the last has left."""
    _, shards = build(inputs, tmp_path / "whole", tasks=1, workers=1)
    kills, stages = 0, set()
    while (status := killed_build(inputs, tmp_path / "killed", 3 + 2 * kills)) == -signal.SIGKILL:
        kills += 1
        stages.add(len(list((tmp_path / "killed/work").glob("*/logs"))))
    assert status == 0 and kills > 8 and len(stages) > 5
    _, found = build(inputs, tmp_path / "killed", tasks=1, workers=1)  # complete: reads the report
    assert found == shards
    assert not list((tmp_path / "killed").rglob(".*.tmp"))
