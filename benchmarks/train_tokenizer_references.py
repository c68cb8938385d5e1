"""Trains tokenizers on real texts and counts what differs from references; all counts must be 0.

Published: the vocabulary and merges of a byte-level BPE of 500 tokens. Libraries, on books, sentences of 75 languages, a
declaration in 389 and the sources of Python's standard library: byte-level BPE against the trainer of `tokenizers`, cut
in every way; SentencePiece's BPE against its own library reading the texts. Exits with 1 where anything differs.

    python benchmarks/train_tokenizer_references.py --data DIR [--megabytes N] [--vocab-size N]
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2
from tokenizer_references import corpora, take
from tokenizers import Tokenizer, models
from train_tokenizer import bpe_trainer, sentencepiece_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.tokenizer import train_tokenizer
from megalm.tokenizer.training.bpe import BPE
from megalm.tokenizer.training.cutting import PRETOKENIZERS


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrong = check_published(arguments.data / "tokenizers/reference/cs336", folder)
        for title, source in corpora(arguments.data).items():
            texts = list(take(source, arguments.megabytes))
            path = folder / "texts.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            for pretokenizer in BPE.pretokenizers:
                assert pretokenizer is not None
                differing = compare_bpe(texts, path, folder, pretokenizer, arguments.vocab_size)
                wrong += told(f"{title}, {pretokenizer}", differing)
            differing = compare_sentencepiece(texts, path, folder, arguments.vocab_size)
            wrong += told(f"{title}, SentencePiece BPE", differing)
    print(f"differing tokens and merges in all: {wrong}")
    sys.exit(1 if wrong else 0)


def check_published(reference: Path, folder: Path) -> int:
    shutil.copy(reference / "corpus.en", folder / "corpus.txt")
    train_tokenizer([folder / "corpus.txt"], folder / "t", "bpe", 500, ties="bytes", overwrite=True)
    model = json.loads((folder / "t" / "tokenizer.json").read_text())["model"]
    vocabulary = json.loads((reference / "train-bpe-reference-vocab.json").read_text())
    lines = (reference / "train-bpe-reference-merges.txt").read_text().split("\n")
    merges = [line.split(" ") for line in lines if line]
    differing = len(vocabulary.items() ^ model["vocab"].items()) + count_different(merges, model["merges"])
    return told(f"published, {len(vocabulary)} tokens, {len(merges)} merges", differing)


def compare_bpe(texts: list[str], path: Path, folder: Path, pretokenizer: str, size: int) -> int:
    train_tokenizer([path], folder / "t", "bpe", size, pretokenizer=pretokenizer, overwrite=True)
    ours = json.loads((folder / "t" / "tokenizer.json").read_text())["model"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = PRETOKENIZERS[pretokenizer].backend()
    backend.train_from_iterator(texts, bpe_trainer(size))
    theirs = json.loads(backend.to_str())["model"]
    return len(theirs["vocab"].items() ^ ours["vocab"].items()) + count_different(
        theirs["merges"], ours["merges"]
    )


def compare_sentencepiece(texts: list[str], path: Path, folder: Path, size: int) -> int:
    """Pieces, scores and types; lines too long for the library are left out on both sides."""
    lines = [
        line for text in texts for line in text.replace("\r", "\n").split("\n") if len(line.encode()) < 4000
    ]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    train_tokenizer([path], folder / "t", "sentencepiece-bpe", size, overwrite=True)
    theirs = pieces_of(sentencepiece_model(iter(lines), "bpe", size))
    return count_different(theirs, pieces_of((folder / "t" / "tokenizer.model").read_bytes()))


def pieces_of(data: bytes) -> list[tuple[str, float, int]]:
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(data)
    return [(piece.piece, piece.score, piece.type) for piece in proto.pieces]


def count_different(expected: list, found: list) -> int:
    return sum(one != other for one, other in zip(expected, found, strict=False)) + abs(
        len(expected) - len(found)
    )


def told(title: str, differing: int) -> int:
    print(f"{title:<48} {differing:>7} differ", flush=True)
    return differing


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with tokenizers/ and texts")
    parser.add_argument("--megabytes", type=float, help="of each corpus; all of it if left out")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
