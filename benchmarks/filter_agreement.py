"""Which documents megalm's Gopher, C4 and FineWeb rules keep beside datatrove's own blocks, and why where they differ.

`--data` is a folder with pages (.html, .html.gz; their text is extracted first) or documents (.jsonl, .jsonl.gz with a
`text`). Two comparisons: with spaCy's words in datatrove's blocks (as they come; needs spaCy), and with megalm's words
in both, so that what is left comes of the rules alone.
"""

import argparse
import copy
import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import get_filter_result
from datatrove.utils import text as datatrove_text
from datatrove.utils import word_tokenizers

from megalm.corpus.clean.c4 import C4
from megalm.corpus.clean.encoding import decode
from megalm.corpus.clean.extract import extract_text
from megalm.corpus.clean.fineweb import FineWeb
from megalm.corpus.clean.gopher_quality import GopherQuality
from megalm.corpus.clean.gopher_repetition import GopherRepetition
from megalm.corpus.clean.normalize import Normalize, normalize
from megalm.corpus.words import Split, sentence_spans

PAIRS = [
    (GopherQuality, GopherQualityFilter),
    (GopherRepetition, GopherRepetitionFilter),
    (C4, C4QualityFilter),
    (FineWeb, FineWebQualityFilter),
]


class OurWords(word_tokenizers.WordTokenizer):
    """megalm's words and sentences for datatrove's blocks."""

    def word_tokenize(self, text: str) -> list[str]:
        return Split(text).tokens

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[begin:end] for begin, end in sentence_spans(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return sentence_spans(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with pages or JSONL documents")
    parser.add_argument("--mode", choices=("precise", "fast"), default="fast", help="how pages are extracted")
    parser.add_argument("--limit", type=int, default=1000, help="this many documents at most")
    parser.add_argument("--show", type=int, default=0, help="print this many ids for each kind of difference")
    arguments = parser.parse_args()
    texts = dict(read(arguments.data, arguments.mode, arguments.limit))
    print(f"{len(texts)} documents")
    try:
        import spacy  # noqa: F401

        print("\nmegalm beside datatrove with spaCy's words")
        compare_all(texts, arguments.show)
    except ImportError:
        print("\nspaCy is not installed: datatrove's blocks run with megalm's words alone")
    word_tokenizers.load_word_tokenizer = lambda *_: OurWords()
    datatrove_text.split_into_parts.cache_clear()
    print("\nmegalm beside datatrove with megalm's words in both")
    compare_all(texts, arguments.show)


def compare_all(texts: dict[str, str], show: int) -> None:
    """Print the agreement of each pair of filters, and their reasons where they disagree."""
    for ours, theirs in PAIRS:
        step, block = ours(), theirs()
        pairs: dict[tuple[str | None, str | None], list[str]] = {}
        for name, text in texts.items():
            document = Document(text=text, id=name)
            kept, reason = get_filter_result(block.filter(copy.deepcopy(document)))
            pairs.setdefault((step.apply(document), None if kept else reason or "removed"), []).append(name)
        agree = sum(len(names) for (a, b), names in pairs.items() if (a is None) == (b is None))
        removed = [sum(len(names) for pair, names in pairs.items() if pair[side]) for side in (0, 1)]
        print(
            f"  {step.name:<18} agree on {agree / len(texts):.4f}; removed {removed[0]} and {removed[1]} of {len(texts)}"
        )
        differing = Counter({p: len(n) for p, n in pairs.items() if (p[0] is None) != (p[1] is None)})
        for (a, b), count in differing.most_common():
            print(f"      {count:4}  megalm: {a or 'kept':<45} datatrove: {b or 'kept'}")
            for name in pairs[a, b][:show]:
                print(f"            {name}")


def read(folder: Path, mode: str, limit: int) -> Iterator[tuple[str, str]]:
    """Names and texts of at most `limit` documents, unified as the step `normalize` does."""
    settings = Normalize.Settings()
    found = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        for name, text in texts_of(path, mode):
            text = normalize(text, settings)
            if text and found < limit:
                found += 1
                yield name, text


def texts_of(path: Path, mode: str) -> Iterator[tuple[str, str]]:
    """The documents of one file; none for files of other kinds."""
    name = path.name.removesuffix(".gz")
    if not name.endswith((".html", ".htm", ".jsonl")):
        return
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if name.endswith(".jsonl"):
        for number, line in enumerate(data.split(b"\n")):
            if line.strip():
                yield f"{name}:{number}", json.loads(line)["text"]
    else:
        yield name, extract_text(decode(data)[0], mode)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
