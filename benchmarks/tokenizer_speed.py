"""Times encoding beside the libraries that read the same vocabulary: megabytes of text a second on one core.

All encode the same texts into ids, turn by turn in one process; figures are medians of the rounds, and whether the ids
are identical is told beside them. megalm: `encode_ragged`; tokenizers: `encode_batch_fast`; tiktoken:
`encode_ordinary`, its ranks being the vocabulary's ids; sentencepiece: `encode` of a list.

    python benchmarks/tokenizer_speed.py [--data DIR] [--tokenizer PATH ...]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
from tiktoken_ext import openai_public

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.tokenizer import Tokenizer, load_tokenizer, train_bpe
from megalm.tokenizer.documents import expand_inputs, read_documents
from megalm.tokenizer.formats import GPT2_PATTERN
from megalm.tokenizer.huggingface import HuggingFaceTokenizer, backend_from_json
from megalm.tokenizer.sentencepiece import SentencePieceTokenizer

SEED = 1234
WORDS = 100_000
MEAN_WORDS = 500
BATCH = 64
MB = 1_000_000

Encode = Callable[[list[str]], Any]


def main() -> None:
    arguments = parse_arguments()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = take(texts_of(arguments.data) if arguments.data else made_texts(), arguments.megabytes * MB)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in arguments.tokenizer or [train(texts, Path(folder))]:
            contenders = contenders_of(load_tokenizer(path), path)
            name = (
                f"{path.parent.name}/{path.name}" if arguments.tokenizer else "byte-level BPE, trained here"
            )
            results[name] = time_all(contenders, texts, arguments.rounds)
            report(name, results[name])
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", help="JSONL or text files or folders; else random words"
    )
    parser.add_argument(
        "--tokenizer", type=Path, nargs="+", help="tokenizers; else byte-level BPE is trained"
    )
    parser.add_argument("--megabytes", type=float, default=20, help="of text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    return parser.parse_args()


def texts_of(inputs: list[Path]) -> list[str]:
    return [document.text for file in expand_inputs(inputs) for document in read_documents(file)]


def made_texts() -> list[str]:
    """Documents of random words, frequent ones being frequent as in language."""
    rng = np.random.default_rng(SEED)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = rng.integers(2, 12, WORDS)
    words = ["".join(rng.choice(letters[: 6 + length], length)) for length in lengths]
    picks = np.minimum(rng.zipf(1.2, 4_000_000), WORDS) - 1
    return [" ".join(words[i] for i in row) for row in np.array_split(picks, len(picks) // MEAN_WORDS)]


def take(texts: list[str], size: float) -> list[str]:
    sizes = accumulate(len(text.encode()) for text in texts)
    return [text for text, end in zip(texts, sizes, strict=True) if end <= size] or texts[:1]


def train(texts: list[str], folder: Path) -> Path:
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    train_bpe([source], 16_000, folder / "tokenizer", sample_bytes=4 * MB)
    return folder / "tokenizer"


def contenders_of(tokenizer: Tokenizer, path: Path) -> dict[str, Encode]:
    """The ways to encode by this vocabulary."""
    found: dict[str, Encode] = {"megalm": tokenizer.encode_ragged}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        backend = backend_from_json(tokenizer.content)
        found["tokenizers"] = lambda batch: rows_of(backend, batch)
        pattern = pattern_of(json.loads(tokenizer.content))
        if pattern is not None:
            specials = set(tokenizer.special_tokens.values())
            ranks = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i not in specials}
            encoding = tiktoken.Encoding("same", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
            found["tiktoken"] = lambda batch: [encoding.encode_ordinary(text) for text in batch]
    model = next(iter(path.glob("*.model")), path) if path.is_dir() else path
    if isinstance(tokenizer, SentencePieceTokenizer) or model.suffix == ".model":
        library = sentencepiece.SentencePieceProcessor(model_file=str(model))
        found["sentencepiece"] = lambda batch: library.encode(batch, num_threads=1)
    return found


def rows_of(backend: tokenizers.Tokenizer, batch: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]


def pattern_of(content: dict[str, Any]) -> str | None:
    """The pattern of byte-level BPE, as tiktoken writes it."""
    cut = content["pre_tokenizer"] or {}
    steps = cut.get("pretokenizers", [cut])
    if steps[-1].get("type") != "ByteLevel" or content["normalizer"]:
        return None
    if len(steps) == 1:
        return openai_public.r50k_pat_str
    pattern = steps[0]["pattern"]["Regex"]
    return openai_public.r50k_pat_str if pattern == GPT2_PATTERN else pattern.replace(r"\z", "$")


def time_all(contenders: dict[str, Encode], texts: list[str], rounds: int) -> dict[str, Any]:
    batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    megabytes = sum(len(text.encode()) for text in texts) / MB
    ids = {
        name: [flat(encode(batch)) for batch in batches] for name, encode in contenders.items()
    }  # warms up
    same = {
        name: all(np.array_equal(a, b) for a, b in zip(found, ids["megalm"], strict=True))
        for name, found in ids.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, encode in contenders.items():
            start = time.perf_counter()
            for batch in batches:
                encode(batch)
            seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "megabytes_a_second": megabytes / statistics.median(taken),
            "seconds": taken,
            "megabytes": megabytes,
            "same_ids": same[name],
        }
        for name, taken in seconds.items()
    }


def flat(rows: Any) -> np.ndarray:
    if isinstance(rows, tuple):
        return rows[0]
    return np.array([i for row in rows for i in row], np.uint32)


def report(name: str, results: dict[str, Any]) -> None:
    print(f"{name}, {results['megalm']['megabytes']:.1f} MB")
    own = results["megalm"]["megabytes_a_second"]
    for contender, found in results.items():
        speed = found["megabytes_a_second"]
        note = "" if found["same_ids"] else "  other ids"
        print(f"  {contender:<14} {speed:8.1f} MB/s   megalm is {own / speed:6.1f}x{note}", flush=True)


if __name__ == "__main__":
    main()
