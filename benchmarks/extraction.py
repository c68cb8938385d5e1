"""Scores text extraction on the article-extraction-benchmark: precision, recall and F1 as that benchmark defines them.

`--data` is its checkout (https://github.com/scrapinghub/article-extraction-benchmark): `ground-truth.json` and
`html/ID.html.gz`. Texts are compared as bags of four consecutive words; true and false positives and negatives are
divided by their sum for each page, precision and recall are means over pages, and F1 is made of these means.
"""

import argparse
import gzip
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.corpus.clean.encoding import decode
from megalm.corpus.clean.extract import extract_text

GOALS = {"precise": 0.96, "fast": 0.92}
WORD = re.compile(r"\w+")
SHINGLE = 4

Counts = tuple[float, float, float]
"""True positives, false positives, false negatives of one page, as shares of their sum."""


class Score(NamedTuple):
    """Means over pages, and F1 of the means."""

    precision: float
    recall: float
    f1: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with ground-truth.json and html/")
    data = parser.parse_args().data
    truth = {
        page: entry.get("articleBody", "")
        for page, entry in json.loads((data / "ground-truth.json").read_text(encoding="utf-8")).items()
    }
    pages = {page: gzip.decompress((data / "html" / f"{page}.html.gz").read_bytes()) for page in truth}
    print(f"{len(pages)} pages")
    print(f"{'mode':<20} {'precision':>9} {'recall':>8} {'F1':>8} {'goal':>6} {'pages/s of CPU':>15}")
    for name, function in extractors().items():
        begin = time.process_time()
        texts = {page: function(payload) for page, payload in pages.items()}
        rate = len(pages) / (time.process_time() - begin)
        score = evaluate(truth, texts)
        goal = f"{GOALS[name]:.2f}" if name in GOALS else ""
        print(f"{name:<20} {score.precision:9.4f} {score.recall:8.4f} {score.f1:8.4f} {goal:>6} {rate:15.1f}")


def extractors() -> dict[str, Callable[[bytes], str]]:
    """megalm's two modes, and what is behind them as it comes."""
    from resiliparse.extract.html2text import extract_plain_text
    from trafilatura import extract

    return {
        "precise": lambda payload: extract_text(decode(payload)[0], "precise"),
        "fast": lambda payload: extract_text(decode(payload)[0], "fast"),
        "trafilatura": lambda payload: extract(payload) or "",
        "resiliparse": lambda payload: extract_plain_text(decode(payload)[0], main_content=True),
    }


def evaluate(truth: dict[str, str], texts: dict[str, str]) -> Score:
    """The benchmark's score of `texts` against `truth`, both by page."""
    counts = [compare(truth[page], texts[page]) for page in truth]
    precision = statistics.mean(_share(tp, fp, fn) for tp, fp, fn in counts if tp + fp > 0)
    recall = statistics.mean(_share(tp, fn, fp) for tp, fp, fn in counts if tp + fn > 0)
    return Score(precision, recall, 2 * precision * recall / (precision + recall))


def compare(truth: str, text: str) -> Counts:
    """How the shingles of an extracted text agree with those of the true one."""
    wanted, found = shingles(truth), shingles(text)
    counts = (wanted & found).total(), (found - wanted).total(), (wanted - found).total()
    total = sum(counts) or 1
    return counts[0] / total, counts[1] / total, counts[2] / total


def shingles(text: str) -> Counter[tuple[str, ...]]:
    """All runs of four words with their counts; a shorter text is one run."""
    words = WORD.findall(text)
    if not words:
        return Counter()
    return Counter(tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def _share(right: float, wrong: float, other: float) -> float:
    return 1.0 if wrong == other == 0 else right / (right + wrong)


if __name__ == "__main__":
    main()
