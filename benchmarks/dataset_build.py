"""Times building token files from JSONL beside Megatron's own path: input text a second on one core, end to end.

megalm: `build_dataset` with one worker, which tokenizes, splits, shuffles, hashes and syncs to disk. Megatron: what its
tools/preprocess_data.py does in one process, json.loads, the tokenizers library's `encode` a document at a time and
Megatron-Core's IndexedDatasetBuilder. Both read the same file turn by turn; figures are medians of the rounds, by wall
clock and by processor time. That both hold the same documents is checked after the timing. With `--workers N` megalm builds with N
workers, too, in the same turns, and the files must be the same byte for byte.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.dataset import IndexedDataset, build_dataset
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.tokenizer.documents import expand_inputs, read_documents

SEED = 1234
MEAN_CHARACTERS = 3000
WORDS = 100_000
TRAINING_BYTES = 4_000_000
MB = 1_000_000
MANY = "megalm_workers"


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name)
        source = folder / "text.jsonl"
        texts = texts_of(arguments.data) if arguments.data else made_texts()
        texts = in_pieces(texts, arguments.longest)
        characters, documents, size = write_source(source, texts, arguments.megabytes * MB)
        if arguments.tokenizer is None:
            arguments.tokenizer = folder / "tokenizer"
            train_bpe([source], arguments.vocab_size, arguments.tokenizer, sample_bytes=TRAINING_BYTES)
        tokenizer = arguments.tokenizer
        builders = {
            "megalm": lambda text, out: build_megalm(text, tokenizer, out, 1),
            "megatron": lambda text, out: build_megatron(text, tokenizer, out),
        }
        if arguments.workers > 1:
            builders[MANY] = lambda text, out: build_megalm(text, tokenizer, out, arguments.workers)
        warm_up(folder, builders, source)
        timings: dict[str, list[tuple[float, float]]] = {name: [] for name in builders}
        for _ in range(arguments.rounds):
            for name, builder in builders.items():
                out = folder / name
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                timings[name].append(timed(lambda b=builder, o=out: b(source, o / "d")))
        check_alike(folder / "megalm" / "d_train", folder / "megatron" / "d")
        if arguments.workers > 1:
            check_same_bytes(folder / "megalm" / "d_train", folder / MANY / "d_train")
        tokens = IndexedDataset(folder / "megatron" / "d").num_tokens
        report(arguments, timings, size, {"documents": documents, "characters": characters, "tokens": tokens})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="file or folder of documents; else words made at random")
    parser.add_argument("--tokenizer", type=Path, help="byte-level BPE to use; else one trained on the text")
    parser.add_argument("--vocab-size", type=int, default=32_000, help="of the trained tokenizer")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the JSONL file")
    parser.add_argument("--workers", type=int, default=1, help="time megalm with so many, too")
    parser.add_argument("--longest", type=int, default=100_000, help="characters; longer documents are cut")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="folder for the files; by default the system's")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args()


def texts_of(path: Path) -> Iterator[str]:
    """The documents of `path`, again and again."""
    files = expand_inputs([path])
    for file in cycle(files):
        for document in read_documents(file):
            yield document.text


def in_pieces(texts: Iterator[str], longest: int) -> Iterator[str]:
    """The `texts`, those of more characters than `longest` cut."""
    for text in texts:
        yield from (text[i : i + longest] for i in range(0, len(text), longest))


def made_texts() -> Iterator[str]:
    """Words of one to four syllables, as frequent as Zipf says."""
    rng = np.random.default_rng(SEED)
    syllables = np.array([a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ["", "n", "r", "st"]])
    lengths = rng.integers(1, 5, WORDS)
    words = np.array(["".join(rng.choice(syllables, n)) for n in lengths.tolist()])
    shares = 1 / np.arange(1, WORDS + 1)
    shares /= shares.sum()
    while True:
        drawn = words[rng.choice(WORDS, 100_000, p=shares)].tolist()
        while drawn:
            count = 1 + int(rng.exponential(MEAN_CHARACTERS / 6))
            sentence, drawn = drawn[:count], drawn[count:]
            yield " ".join(sentence).capitalize() + ".\n"


def write_source(path: Path, texts: Iterator[str], size: int) -> tuple[int, int, int]:
    """Write JSONL of about `size` bytes; returns its numbers of characters of text, documents and bytes."""
    characters = documents = 0
    with open(path, "w", encoding="utf-8") as file:
        while file.tell() < size:
            text = next(texts)
            file.write(json.dumps({"id": f"document-{documents}", "text": text}, ensure_ascii=False) + "\n")
            characters, documents = characters + len(text), documents + 1
    return characters, documents, path.stat().st_size


def build_megalm(source: Path, tokenizer: Path, out: Path, workers: int) -> None:
    build_dataset([source], tokenizer, out, workers=workers, splits="1")


def build_megatron(source: Path, tokenizer: Path, out: Path) -> None:
    import tokenizers
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    loaded = load_tokenizer(tokenizer)
    backend = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    backend.encode_special_tokens = True
    builder = IndexedDatasetBuilder(f"{out}.bin", dtype=DType.optimal_dtype(loaded.vocab_size))
    with open(source, encoding="utf-8") as file:
        for line in file:
            ids = backend.encode(json.loads(line)["text"], add_special_tokens=False).ids
            ids.append(loaded.eod_id)
            builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{out}.idx")


def warm_up(folder: Path, builders: dict[str, Callable[[Path, Path], None]], source: Path) -> None:
    """Imports and the page cache are not what is timed."""
    start = folder / "start.jsonl"
    start.write_bytes(b"".join(source.read_bytes().splitlines(keepends=True)[:100]))
    for name, builder in builders.items():
        (folder / name).mkdir()
        builder(start, folder / name / "d")


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Seconds by wall clock and of processor time, workers' included."""
    wall, processor = time.perf_counter(), processor_seconds()
    function()
    return time.perf_counter() - wall, processor_seconds() - processor


def processor_seconds() -> float:
    """What this process and those of its children that have ended have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def check_alike(one: Path, other: Path) -> None:
    """The documents are the same; megalm has shuffled its own."""
    found = [Counter(hash(d[i].tobytes()) for i in range(len(d))) for d in map(IndexedDataset, (one, other))]
    if found[0] != found[1]:
        raise SystemExit(f"{one} and {other} hold different documents")


def check_same_bytes(one: Path, other: Path) -> None:
    """Workers change nothing."""
    for suffix in (".bin", ".idx", ".crc", ".json"):
        if Path(f"{one}{suffix}").read_bytes() != Path(f"{other}{suffix}").read_bytes():
            raise SystemExit(f"{other}{suffix} differs from {one}{suffix}")


def report(
    arguments: argparse.Namespace,
    timings: dict[str, list[tuple[float, float]]],
    size: int,
    counts: dict[str, int],
) -> None:
    builders = {
        name: {
            "mb_per_s": size / MB / statistics.median(wall for wall, _ in rounds),
            "mb_per_cpu_s": size / MB / statistics.median(processor for _, processor in rounds),
        }
        for name, rounds in timings.items()
    }
    ratios = [
        theirs[0] / ours[0] for ours, theirs in zip(timings["megalm"], timings["megatron"], strict=True)
    ]
    result: dict[str, Any] = {
        "bytes": size,
        **counts,
        "rounds": arguments.rounds,
        "builders": builders,
        "ratio": statistics.median(ratios),
    }
    if arguments.workers > 1:
        pairs = zip(timings["megalm"], timings[MANY], strict=True)
        result["workers"] = arguments.workers
        result["scaling"] = statistics.median(one[0] / many[0] for one, many in pairs)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{size / MB:.1f} MB of JSONL, {counts['documents']:,} documents, {counts['tokens']:,} tokens")
    print(f"one core, unless said otherwise; medians of {arguments.rounds} rounds")
    for name, figures in builders.items():
        print(
            f"{name:>14}: {figures['mb_per_s']:8.2f} MB/s   {figures['mb_per_cpu_s']:8.2f} MB a second of the processor"
        )
    print(f"megalm builds {result['ratio']:.1f}x as fast; both hold the same documents")
    if arguments.workers > 1:
        print(f"{arguments.workers} workers build {result['scaling']:.2f}x as fast as one, the same bytes")


if __name__ == "__main__":
    main()
