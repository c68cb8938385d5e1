"""Times training tokenizers beside the libraries that do it, and measures memory on a corpus that grows tenfold.

Each run is a process of its own, so that its peak memory is its own; the runs take turns. "megalm" counts words on
`--workers` processes; `tokenizers`, rustbpe and gigatoken use as many threads. Every byte-level BPE of a row cuts texts
in the same way, and its vocabulary is checked against that of `tokenizers`. Libraries that are missing are left out.

    python benchmarks/train_tokenizer.py [--data DIR] [--megabytes 100] [--vocab-size 32000] [--workers 1]
    python benchmarks/train_tokenizer.py --memory [--megabytes 20]
"""

import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.tokenizer import train_tokenizer
from megalm.tokenizer.documents import expand_inputs, read_documents

MB = 1_000_000
EOD = "<|endoftext|>"
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GROUPS = {
    "byte-level BPE, cut as GPT-2": ["tokenizers bpe", "megalm bpe", "gigatoken bpe", "rustbpe bpe"],
    "byte-level BPE, cut as GPT-4": ["tokenizers gpt4", "megalm gpt4", "rustbpe gpt4"],
    "SentencePiece unigram": ["sentencepiece unigram", "megalm unigram"],
    "SentencePiece BPE": ["sentencepiece bpe", "megalm sentencepiece-bpe"],
    "WordPiece": ["tokenizers wordpiece", "megalm wordpiece"],
}
"""What is compared; the first of each group is what ratios are to."""


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        if arguments.memory:
            measure_memory(Path(folder), arguments)
        else:
            measure_time(Path(folder), arguments)


def measure_time(folder: Path, arguments: argparse.Namespace) -> None:
    source = folder / "text.jsonl"
    texts = texts_of(arguments.data) if arguments.data else made_texts(arguments.megabytes * MB)
    size = write_source(source, texts, arguments.megabytes * MB)
    print(f"{size / MB:.1f} MB of text, {arguments.vocab_size} tokens, {arguments.workers} workers")
    for title, names in GROUPS.items():
        if arguments.only and not any(name in arguments.only for name in names):
            continue
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names if is_there(name)}
        for _ in range(arguments.rounds):
            for name in runs:
                runs[name].append(in_process(name, source, folder / "out", arguments))
        print(f"\n{title}\n{'':<26}{'s':>8}{'CPU s':>8}{'MB/s':>8}{'peak MB':>9}{'speed-up':>10}  vocabulary")
        first = next(iter(runs.values()))
        base = statistics.median(run["seconds"] for run in first)
        for name, taken in runs.items():
            seconds = statistics.median(run["seconds"] for run in taken)
            cpu = statistics.median(run["cpu"] for run in taken)
            peak = max(run["peak"] for run in taken)
            same = "as the first" if taken[0]["tokens"] == first[0]["tokens"] else "differs"
            row = f"{name:<26}{seconds:>8.1f}{cpu:>8.1f}{size / MB / seconds:>8.1f}{peak:>9.0f}{base / seconds:>9.2f}x"
            print(f"{row}  {same}", flush=True)


def measure_memory(folder: Path, arguments: argparse.Namespace) -> None:
    """Peak memory on a corpus of random words and on one ten times larger, with ten times as many distinct words."""
    print(f"{'':<26}{'text MB':>9}{'peak MB':>9}{'seconds':>9}")
    for name in ("megalm bpe", "megalm unigram", "tokenizers bpe"):
        for factor in (1, 10):
            source = folder / "text.jsonl"
            write_source(source, growing_texts(), factor * arguments.megabytes * MB)
            run = in_process(name, source, folder / "out", arguments)
            row = f"{name:<26}{factor * arguments.megabytes:>9}{run['peak']:>9.0f}{run['seconds']:>9.1f}"
            print(row, flush=True)


def in_process(name: str, source: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    os.environ["RAYON_NUM_THREADS"] = str(arguments.workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if arguments.workers > 1 else "false"
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    options = (arguments.vocab_size, arguments.workers, arguments.max_words)
    process = context.Process(target=run_one, args=(send, name, str(source), str(out), *options))
    process.start()
    send.close()
    result = receive.recv()
    process.join()
    return result


def run_one(send: Any, name: str, source: str, out: str, size: int, workers: int, max_words: int) -> None:
    library, kind = name.split()
    if library != "megalm":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # gigatoken and sentencepiece report on what they do
        os.dup2(1, 2)
    train = TRAINERS[library]
    begin, cpu = time.perf_counter(), cpu_seconds()
    tokens = train(kind, Path(source), Path(out), size, workers, max_words)
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    send.send({"seconds": seconds, "cpu": cpu, "peak": peak / 1024, "tokens": digest(tokens())})


def digest(tokens: set[bytes]) -> str:
    return hashlib.sha256(repr(sorted(tokens)).encode()).hexdigest()


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


Tokens = Callable[[], set[bytes]]


def train_megalm(kind: str, source: Path, out: Path, size: int, workers: int, max_words: int) -> Tokens:
    pretokenizer, kind = ("gpt4", "bpe") if kind == "gpt4" else (None, kind)
    tokenizer = train_tokenizer(
        [source],
        out,
        kind,
        size,
        pretokenizer=pretokenizer,
        character_coverage=1.0 if kind == "wordpiece" else 0.9995,
        workers=workers,
        max_words=max_words,
        overwrite=True,
    )
    return lambda: {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}


def train_tokenizers(kind: str, source: Path, out: Path, size: int, workers: int, max_words: int) -> Tokens:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    from megalm.tokenizer.huggingface import HuggingFaceTokenizer
    from megalm.tokenizer.training.cutting import PRETOKENIZERS

    trainer: Any
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = PRETOKENIZERS["gpt2" if kind == "bpe" else kind].backend()
        backend.decoder = decoders.ByteLevel()
        specials = [EOD]
        trainer = bpe_trainer(size)
    backend.train_from_iterator((d.text for d in read_documents(source)), trainer)
    tokenizer = HuggingFaceTokenizer(backend.to_str(), specials[-1])
    return lambda: {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}


def bpe_trainer(size: int) -> Any:
    """The trainer of `tokenizers` with the settings that megalm has by default."""
    from tokenizers import pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return trainers.BpeTrainer(
        vocab_size=size, special_tokens=[EOD], initial_alphabet=alphabet, show_progress=False
    )


def train_gigatoken(kind: str, source: Path, out: Path, size: int, workers: int, max_words: int) -> Tokens:
    import gigatoken

    files = gigatoken.JsonlFileSource([source])
    vocabulary, _ = gigatoken.train_bpe(files, size, [EOD])
    return lambda: set(vocabulary.values())


def train_rustbpe(kind: str, source: Path, out: Path, size: int, workers: int, max_words: int) -> Tokens:
    import rustbpe

    from megalm.tokenizer.training.cutting import PRETOKENIZERS

    tokenizer = rustbpe.Tokenizer()
    pattern = GPT2 if kind == "bpe" else PRETOKENIZERS[kind].pattern()
    tokenizer.train_from_iterator(
        (d.text for d in read_documents(source)), size - 1, pattern=pattern
    )  # it knows no special tokens
    return lambda: {bytes(token) for token, _ in tokenizer.get_mergeable_ranks()} | {EOD.encode()}


def train_sentencepiece(
    kind: str, source: Path, out: Path, size: int, workers: int, max_words: int
) -> Tokens:
    import sentencepiece

    lines = (line for document in read_documents(source) for line in document.text.split("\n"))
    model = sentencepiece_model(lines, kind, size, num_threads=workers)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda: {
        EOD.encode() if i == 0 else piece_bytes(processor, i) for i in range(processor.get_piece_size())
    }


def sentencepiece_model(lines: Iterator[str], kind: str, size: int, **options: Any) -> bytes:
    """What the library makes of `lines` with the settings that megalm has by default."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        eos_id=0,
        eos_piece=EOD,
        unk_id=1,
        bos_id=-1,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def piece_bytes(processor: Any, number: int) -> bytes:
    if processor.is_byte(number):
        return bytes([int(processor.id_to_piece(number)[3:5], 16)])
    return processor.id_to_piece(number).replace("\u2581", " ").encode()


TRAINERS = {
    "megalm": train_megalm,
    "tokenizers": train_tokenizers,
    "gigatoken": train_gigatoken,
    "rustbpe": train_rustbpe,
    "sentencepiece": train_sentencepiece,
}


def is_there(name: str) -> bool:
    return importlib.util.find_spec(name.split()[0]) is not None


def texts_of(folder: Path) -> Iterator[str]:
    for path in expand_inputs([folder]):
        for document in read_documents(path):
            yield document.text


def write_source(path: Path, texts: Iterator[str], size: int) -> int:
    """Write documents until there are `size` bytes of text; return how many there are."""
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= size:
                break
    return written


def made_texts(size: int) -> Iterator[str]:
    """Documents of made-up words, as frequent as Zipf's law has it."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 11))) for _ in range(200_000)]
    weights = [1 / (rank + 10) for rank in range(len(words))]
    while True:
        yield " ".join(rng.choices(words, weights, k=600)) + ".\n"


def growing_texts() -> Iterator[str]:
    """Documents half of whose words occur nowhere else."""
    rng = random.Random(0)
    common = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 7))) for _ in range(20_000)]
    while True:
        new = [f"{rng.getrandbits(40):x}" for _ in range(300)]
        words = new + rng.choices(common, k=300)
        rng.shuffle(words)
        yield " ".join(words) + "\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="JSONL files or a directory of them; made-up words if left out"
    )
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a name such as 'megalm bpe': its group alone")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument(
        "--max-words", type=int, default=None, help="of megalm; with --memory 200000 if left out"
    )
    parser.add_argument("--scratch", type=Path, help="directory for temporary files")
    arguments = parser.parse_args()
    if arguments.max_words is None:
        arguments.max_words = 200_000 if arguments.memory else 4_000_000
    return arguments


if __name__ == "__main__":
    main()
