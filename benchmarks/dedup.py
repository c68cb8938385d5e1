"""Times de-duplication beside datatrove's MinHash blocks and datasketch on the same documents: documents a second a core.

All use word 5-grams and 14 bands of 8 rows. megalm and datatrove read and write files, stage after stage in one
process; datatrove splits words with a regular expression here, for its own word splitters are downloads. datasketch
holds its index in memory and neither reads nor writes. Times are those of the process (CPU), medians of the rounds.
Needs `pip install "xxhash<4" datasketch` (datatrove fails with xxhash 4) beside the corpus extra.
"""

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasketch import MinHash, MinHashLSH
from datatrove.data import Document
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.logging import logger
from datatrove.utils.word_tokenizers import WordTokenizer

from megalm.corpus.dedup.steps import ExactDuplicates, NearDuplicates
from megalm.corpus.shards import ReadShards, WriteShards
from megalm.tasks import progress_bar
from megalm.tokenizer.documents import expand_inputs, read_documents

NGRAM, BANDS, ROWS = 5, 14, 8
VOCABULARY = 50_000
WORDS = re.compile(r"\w+")

Times = dict[str, float]


class RegexWords(WordTokenizer):
    """Words by a regular expression, the fastest splitter that datatrove can be given."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return WORDS.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Not asked for by MinHash."""
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not asked for by MinHash."""
        return [(0, len(text))]


def main() -> None:
    arguments = parse_arguments()
    logger.remove()
    documents = read(arguments.data, arguments.documents) if arguments.data else make(arguments.documents)
    characters = sum(len(document.text) for document in documents)
    print(f"{len(documents):,} documents of {characters / len(documents):,.0f} characters on average")
    candidates: dict[str, Callable[[Path], tuple[Times, int]]] = {
        "megalm": lambda folder: time_megalm(folder, near(verify=False)),
        "megalm, verified": lambda folder: time_megalm(folder, near(verify=True)),
        "megalm, exact": lambda folder: time_megalm(folder, ExactDuplicates()),
        "datatrove": time_datatrove,
        "datasketch": lambda folder: time_datasketch(documents),
    }
    times: dict[str, list[Times]] = {name: [] for name in candidates}
    kept = {}
    with progress_bar("rounds", arguments.rounds * len(candidates), True) as advance:
        for _ in range(arguments.rounds):
            for name, run in candidates.items():
                with tempfile.TemporaryDirectory() as folder:
                    for _ in WriteShards(Path(folder) / "source").run(iter(documents)):
                        pass
                    seconds, kept[name] = run(Path(folder))
                times[name].append(seconds)
                advance(1)
    report(times, kept, len(documents), arguments.json)


def make(count: int) -> list[Document]:
    """Documents of words with Zipf's frequencies; a fifth are copies of others with some words changed."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 10))) for _ in range(VOCABULARY)]
    cumulative = [0.0]
    for rank in range(1, VOCABULARY + 1):
        cumulative.append(cumulative[-1] + 1 / rank)
    texts: list[list[str]] = []
    for i in range(count):
        if i % 5 == 4:
            text = list(rng.choice(texts))
            for _ in range(rng.randint(0, len(text) // 20)):
                text[rng.randrange(len(text))] = rng.choice(words)
        else:
            text = rng.choices(words, cum_weights=cumulative[1:], k=int(rng.lognormvariate(5.8, 0.8)) + 5)
        texts.append(text)
    return [Document(" ".join(text), f"document-{i}") for i, text in enumerate(texts)]


def read(folder: Path, count: int) -> list[Document]:
    """Documents of the JSONL and text files in a directory."""
    documents = [
        Document(text, f"{path}#{offset}")
        for path in expand_inputs([folder])
        for offset, text in read_documents(path, sample_by="paragraph")
    ]
    return documents[:count]


def near(verify: bool) -> NearDuplicates:
    return NearDuplicates(NearDuplicates.Settings(ngram=NGRAM, bands=BANDS, rows=ROWS, verify=verify))


def time_megalm(folder: Path, step: Any) -> tuple[Times, int]:
    stages = step.stages(folder / "source", folder / "work", folder / "target", 1)
    seconds = {stage.name: clock(lambda stage=stage: drive(stage.pipeline)) for stage in stages}
    return seconds, sum(1 for _ in ReadShards(folder / "target").run())


def time_datatrove(folder: Path) -> tuple[Times, int]:
    config = MinhashConfig(n_grams=NGRAM, num_buckets=BANDS, hashes_per_bucket=ROWS)
    signatures, buckets, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))
    seconds = {
        "keys": clock(
            lambda: drive(
                [
                    ReadShards(folder / "source"),
                    MinhashDedupSignature(signatures, config, language=RegexWords("en")),
                ]
            )
        ),
        "pairs": clock(lambda: drive_all(MinhashDedupBuckets(signatures, buckets, config=config), BANDS)),
        "clusters": clock(lambda: drive([MinhashDedupCluster(buckets, clusters, config=config)])),
        "drop": clock(
            lambda: drive(
                [ReadShards(folder / "source"), MinhashDedupFilter(clusters), WriteShards(folder / "target")]
            )
        ),
    }
    return seconds, sum(1 for _ in ReadShards(folder / "target").run())


def time_datasketch(documents: list[Document]) -> tuple[Times, int]:
    lsh = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    signatures: list[MinHash] = []

    def sign() -> None:
        for document in documents:
            words = [word.encode() for word in WORDS.findall(document.text.lower())]
            grams = [b" ".join(words[i : i + NGRAM]) for i in range(max(1, len(words) - NGRAM + 1))]
            signature = MinHash(num_perm=BANDS * ROWS)
            signature.update_batch(grams)
            signatures.append(signature)

    def remove() -> None:
        for document, signature in zip(documents, signatures, strict=True):
            if not lsh.query(signature):
                lsh.insert(document.id, signature)

    seconds = {"keys": clock(sign), "pairs": clock(remove)}
    return seconds, len(lsh.keys)


def drive(pipeline: list[Any], rank: int = 0, world_size: int = 1) -> None:
    data: Any = None
    for step in pipeline:
        data = step.run(data, rank, world_size)
    for _ in data or ():
        pass


def drive_all(step: Any, tasks: int) -> None:
    for rank in range(tasks):
        drive([step], rank, tasks)


def clock(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def report(times: dict[str, list[Times]], kept: dict[str, int], count: int, as_json: bool) -> None:
    result: dict[str, Any] = {}
    for name, rounds in times.items():
        stages = {stage: count / statistics.median(r[stage] for r in rounds) for stage in rounds[0]}
        stages["all"] = count / statistics.median(sum(r.values()) for r in rounds)
        result[name] = {
            "kept": kept[name],
            "documents_per_second": {k: round(v, 1) for k, v in stages.items()},
        }
    for name in ("datatrove", "datasketch"):
        ratio = result["megalm"]["documents_per_second"]["all"] / result[name]["documents_per_second"]["all"]
        result[f"megalm / {name}"] = round(ratio, 2)
    print_table(result) if not as_json else print(json.dumps(result, indent=1))


def print_table(result: dict[str, Any]) -> None:
    for name, entry in result.items():
        if isinstance(entry, dict):
            rates = entry["documents_per_second"].items()
            line = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in rates)
            print(f"{name}: {line} documents/s; {entry['kept']:,} kept")
        else:
            print(f"{name}: {entry}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument(
        "--data", type=Path, help="JSONL or text files (a document a paragraph) instead of made ones"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
