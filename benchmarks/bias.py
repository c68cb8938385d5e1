"""What the steps on bias cost beside other steps, and how often `her` and `his` are taken for what they are.

`--data` is a folder with English documents as .jsonl.gz files (key `text`) at any depth, and with WinoBias's sentences
(`pro_stereotyped_type1.txt.dev` and so on), whose two forms differ in the gender of a pronoun: exchanging one form must give the
other. Times are this process's, in seconds of CPU.
"""

import argparse
import gzip
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datatrove.data import Document

from megalm.corpus.bias.scan import GroupsOf
from megalm.corpus.bias.swap import Swap
from megalm.corpus.bias.terms import load_terms
from megalm.corpus.registry import step_class
from megalm.corpus.words import split

STEPS = [
    "gopher_quality",
    "gopher_repetition",
    "c4",
    "representation",
    "representation_filter",
    "counterfactual",
]
MARKS = re.compile(r"^\d+ |[\[\]]")
MOST_CHARACTERS = 20_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    texts = read_texts(data)
    print(f"{len(texts)} documents, {sum(map(len, texts)) / len(texts):,.0f} characters on average")
    measure_steps(texts)
    measure_pronouns(data)


def read_texts(data: Path) -> list[str]:
    """The texts of the documents, up to a number of characters in all."""
    texts: list[str] = []
    left = MOST_CHARACTERS
    for path in sorted(data.rglob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                text = json.loads(line).get("text")
                if isinstance(text, str) and 200 < len(text) <= left:
                    texts.append(text)
                    left -= len(text)
    return texts


def measure_steps(texts: list[str]) -> None:
    """Print what a document costs: splitting into words, finding its groups, and each step, words split before."""
    groups, seconds = GroupsOf(None), Counter[str]()
    steps = [step_class(name)() for name in STEPS]
    for step in steps:
        step.start()
    groups(Document("she", "a"))
    for number, text in enumerate(texts):
        document = Document(text, str(number))
        for name, act in (("split into words", split), ("find groups", groups)):
            begin = time.process_time()
            act(document).tokens if act is split else act(document)
            seconds[name] += time.process_time() - begin
        for step in steps:
            copy = Document(text, str(number))
            begin = time.process_time()
            if step.apply(copy) is None:
                tuple(step.additions(copy))
            seconds[step.name] += time.process_time() - begin
    for name, total in seconds.items():
        print(f"    {name:<24} {1000 * total / len(texts):8.3f} ms a document")


def measure_pronouns(data: Path) -> None:
    """Print how many sentences in which one word differs come out as the other form, by that word."""
    swap = Swap(load_terms().file, gender=True, names=False)
    right, all_of = Counter[str](), Counter[str]()
    for path in sorted(data.rglob("pro_stereotyped_type*")):
        forms = [
            other.read_text(encoding="utf-8").splitlines()
            for other in (path, Path(str(path).replace("pro_", "anti_")))
        ]
        for pair in zip(*forms, strict=False):
            first, second = (MARKS.sub("", MARKS.sub("", form)) for form in pair)
            for one, other in ((first, second), (second, first)):
                differing = [a for a, b in zip(one.split(), other.split(), strict=False) if a != b]
                if len(differing) == 1:
                    word = differing[0].lower().strip(".")
                    all_of[word] += 1
                    right[word] += swap(one).lower() == other.lower()
    for word, count in all_of.most_common(5):
        print(f"    {word:<8} {right[word]} of {count} sentences exchanged as WinoBias has them")


if __name__ == "__main__":
    main()
