"""Labelled texts for tests: two or three kinds of words with common words between, some labels wrong."""

import json
import random
from pathlib import Path

COMMON = "the of and to in that with for was on river mountain garden window morning".split()
MARKS = {
    "good": "theorem proof lemma evidence method measure result chapter".split(),
    "bad": "click buy cheap winner casino prize offer deal".split(),
    "ugly": "xx zz qq jj kk vv ww yy".split(),
}


def text_of(kind: str, rng: random.Random, words: int = 25) -> str:
    """A text in which one word in four tells its kind."""
    return " ".join(rng.choice(MARKS[kind] if rng.random() < 0.25 else COMMON) for _ in range(words))


def labelled(count: int, kinds=("bad", "good"), wrong: float = 0.0, seed: int = 0) -> list[dict]:
    """`count` records, the share `wrong` of them with another label than their words tell."""
    rng = random.Random(seed)
    records = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        label = rng.choice(kinds) if rng.random() < wrong else kind
        records.append({"id": f"d{number}", "text": text_of(kind, rng), "label": label})
    return records


def write(path: Path, records: list[dict]) -> Path:
    """The records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
