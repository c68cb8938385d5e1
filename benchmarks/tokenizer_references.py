"""Counts ids that differ from published references and from the reference libraries; all counts must be 0.

Published: GPT-2's ids of a French text, BERT's ids and pieces of 10,570 questions. Libraries, over all the texts that
there are (books, sentences of 75 languages, a declaration in 389, sources of Python's standard library): the fast way
against `tokenizers`, GPT-2's vocabulary against tiktoken, SentencePiece models against their own library. Exits with 1
where any id differs.

    python benchmarks/tokenizer_references.py --data DIR [--megabytes N]
"""

import argparse
import gzip
import itertools
import json
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
import tiktoken
import tokenizers
from tiktoken_ext import openai_public

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.tokenizer import Tokenizer, load_tokenizer
from megalm.tokenizer.fast import PATTERNS
from megalm.tokenizer.huggingface import HuggingFaceTokenizer, backend_from_json

BATCH = 256
MB = 1_000_000
Encode = Callable[[list[str]], list[Sequence[int]]]


def main() -> None:
    arguments = parse_arguments()
    data: Path = arguments.data
    texts = {name: list(take(texts, arguments.megabytes)) for name, texts in corpora(data).items()}
    for name, found in texts.items():
        print(
            f"{name:<12} {len(found):>7,} texts {sum(len(t.encode()) for t in found) / MB:>7.1f} MB",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        gpt2 = load_tokenizer(unpack_gpt2(data / "tokenizers/gpt2", Path(folder)))
    wrong = check_gpt2(gpt2, data) + check_bert(data) + check_round_trip(gpt2, data)
    wrong += check_sentencepiece(data, texts)
    wrong += check_tiktoken(gpt2, texts)
    wrong += check_fast(gpt2, load_tokenizer(data / "tokenizers/llama2"), texts)
    print(f"differing ids in all: {wrong}")
    sys.exit(1 if wrong else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with tokenizers/ and texts")
    parser.add_argument("--megabytes", type=float, help="of each corpus; all of it if left out")
    return parser.parse_args()


def corpora(data: Path) -> dict[str, Iterator[str]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = (p for p in sorted(library.rglob("*.py")) if "site-packages" not in p.parts)
    return {
        "75 languages": (
            line.split("\t", 1)[1] for line in lines_of(data / "multilingual/lingua_sentences.tsv.gz")
        ),
        "389 files": members(data / "multilingual/udhr2.zip"),
        "stdlib": (p.read_text(encoding="utf-8", errors="replace") for p in sources),
        "books": (
            json.loads(line)["text"]
            for file in sorted((data / "text_en_books").glob("*.jsonl.gz"))
            for line in lines_of(file)
        ),
    }


def take(texts: Iterator[str], megabytes: float | None) -> Iterator[str]:
    size = 0
    for text in texts:
        yield text
        size += len(text.encode())
        if megabytes is not None and size > megabytes * MB:
            return


def lines_of(file: Path) -> Iterator[str]:
    return (line for line in gzip.decompress(file.read_bytes()).decode().split("\n") if line)


def members(archive: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            if name.endswith(".txt"):
                yield files.read(name).decode("utf-8", "replace")


def unpack_gpt2(packed: Path, folder: Path) -> Path:
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes(gzip.decompress((packed / f"{name}.gz").read_bytes()))
    return folder


def check_gpt2(gpt2: Tokenizer, data: Path) -> int:
    file = data / "tokenizers/reference/swift_coreml/encoded_tokens.json.gz"
    reference = json.loads(gzip.decompress(file.read_bytes()))
    rows = [gpt2.encode(reference["text"]), gpt2.encode_ragged([reference["text"]])[0].tolist()]
    return told("GPT-2, published", [reference["token_ids"]] * 2, rows)


def check_bert(data: Path) -> int:
    folder = data / "tokenizers/reference/swift_coreml"
    questions = json.loads(gzip.decompress((folder / "question_tokens.json.gz").read_bytes()))
    ids = json.loads(gzip.decompress((folder / "tokenized_questions.json.gz").read_bytes()))
    bert = load_tokenizer(data / "tokenizers/bert-base-uncased")
    rows = bert.encode_batch([question["original"] for question in questions])
    wrong = told("BERT, published ids", ids, rows)
    pieces = [[bert.token_id(piece) for piece in question["wordpiece"]] for question in questions]
    return wrong + told("BERT, published pieces", pieces, rows)


def check_round_trip(gpt2: Tokenizer, data: Path) -> int:
    wrong = 0
    for file in sorted((data / "tokenizers/reference/cs336").glob("*.txt")):
        content = file.read_bytes()
        wrong += gpt2.decode_bytes(gpt2.encode_bytes(content)) != content
    print(f"{'GPT-2, round trip':<54} {wrong} files differ", flush=True)
    return wrong


def check_sentencepiece(data: Path, texts: dict[str, list[str]]) -> int:
    folder = data / "tokenizers"
    wrong = 0
    own = {
        "botchan": list(lines_of_plain(folder / "sentencepiece/botchan.txt")),
        "wagahaiwa": list(lines_of(folder / "sentencepiece/wagahaiwa_nekodearu.txt.gz")),
    }
    for model in (*sorted((folder / "sentencepiece").glob("*.model")), folder / "llama2/tokenizer.model"):
        library = sentencepiece.SentencePieceProcessor(model_file=str(model))
        tokenizer = load_tokenizer(model)
        for name, corpus in (own | texts).items():
            wrong += compare(
                f"{model.parent.name}/{model.name}, {name}",
                corpus,
                lambda t, a=library: a.encode(t, num_threads=1),
                tokenizer,
            )
    return wrong


def lines_of_plain(file: Path) -> Iterator[str]:
    return (line for line in file.read_text(encoding="utf-8").split("\n") if line)


def check_tiktoken(gpt2: Tokenizer, texts: dict[str, list[str]]) -> int:
    ranks = {gpt2.token_bytes(i): i for i in range(gpt2.vocab_size) if i != gpt2.eod_id}
    reference = tiktoken.Encoding(
        "gpt2", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={}
    )
    encode = lambda batch: [reference.encode_ordinary(text) for text in batch]  # noqa: E731
    return sum(compare(f"GPT-2, tiktoken, {name}", corpus, encode, gpt2) for name, corpus in texts.items())


def check_fast(gpt2: Tokenizer, llama: Tokenizer, texts: dict[str, list[str]]) -> int:
    assert isinstance(gpt2, HuggingFaceTokenizer)
    assert isinstance(llama, HuggingFaceTokenizer)
    content = json.loads(gpt2.content)
    kinds = {"GPT-2": gpt2, "Llama 2": llama}
    for number, pattern in enumerate(PATTERNS):
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
        cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, byte_level]}
        kinds[f"pattern {number}"] = HuggingFaceTokenizer(json.dumps(content), gpt2.eod_token)
    wrong = 0
    for name, tokenizer in kinds.items():
        assert tokenizer._fast is not None
        backend = backend_from_json(tokenizer.content)
        for corpus_name, corpus in texts.items():
            share = sum(map(tokenizer._fast.takes, corpus)) / max(len(corpus), 1)
            title = f"{name}, tokenizers, {corpus_name} ({share:.2%} fast)"
            wrong += compare(title, corpus, lambda t, b=backend: rows_of(b, t), tokenizer)
    return wrong


def rows_of(backend: tokenizers.Tokenizer, batch: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)]


def compare(title: str, corpus: list[str], reference: Encode, tokenizer: Tokenizer) -> int:
    """Print and return how many ids `tokenizer.encode_ragged` gives otherwise than `reference`."""
    wrong = total = 0
    for start in range(0, len(corpus), BATCH):
        batch = corpus[start : start + BATCH]
        ids_T, counts = tokenizer.encode_ragged(batch)
        found = np.split(ids_T, np.cumsum(counts)[:-1])
        for expected, row in zip(reference(batch), found, strict=True):
            wrong += differing(expected, row.tolist())
            total += len(row)
    print(f"{title:<54} {total:>12,} ids {wrong:>6} differ", flush=True)
    return wrong


def told(title: str, expected: list[list[int]], found: list[list[int]]) -> int:
    wrong = sum(itertools.starmap(differing, zip(expected, found, strict=True)))
    print(f"{title:<54} {sum(map(len, found)):>12,} ids {wrong:>6} differ", flush=True)
    return wrong


def differing(expected: Sequence[int], found: Sequence[int]) -> int:
    if len(expected) == len(found):
        return sum(a != b for a, b in zip(expected, found, strict=True))
    return max(len(expected), len(found))


if __name__ == "__main__":
    main()
