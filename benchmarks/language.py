"""Accuracy of language identification for each language, on labelled sentences.

`--data` is a file or a folder of .tsv or .tsv.gz files with a language's code, a tab and a sentence a line. Codes that
name one language twice (nb and nn are kinds of no) are set beside each other in ALIASES. Sentences in a language that
the model does not know are listed apart, with what it takes them for.
"""

import argparse
import gzip
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.corpus.clean.language import detect, load_model

ALIASES = {"nb": {"no"}, "hr": {"sh"}, "bs": {"sh"}, "sr": {"sh"}}
THRESHOLD = 0.65


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="a .tsv or .tsv.gz file, or a folder of them"
    )
    sentences = read(parser.parse_args().data)
    model = load_model()
    labels = {label.removeprefix("__label__") for label in all_labels(model)}
    known = {name for name in sentences if ({name} | ALIASES.get(name, set())) & labels}
    begin = time.process_time()
    found = {
        language: [detect(model, sentence) for sentence in texts] for language, texts in sentences.items()
    }
    seconds = time.process_time() - begin
    total = sum(map(len, sentences.values()))
    print(f"{total} sentences, {len(sentences)} languages, {total / seconds:.0f} sentences/s of CPU")
    print(
        f"{'language':<9} {'sentences':>9} {'accuracy':>9} {'kept':>6} {'right of kept':>14}  most often taken for"
    )
    rates = []
    for language in sorted(found, key=lambda name: (name not in known, name)):
        accuracy, line = judge(language, found[language])
        print(line if language in known else f"{line}  (not in the model)")
        if language in known:
            rates.append(accuracy)
    print(
        f"mean accuracy over the {len(rates)} languages that the model knows: {sum(rates) / len(rates):.4f}"
    )


def judge(language: str, found: list[tuple[str, float]]) -> tuple[float, str]:
    """Accuracy of one language's sentences, and a line of the table: also what the threshold of 0.65 keeps."""
    right = {language} | ALIASES.get(language, set())
    kept = [name for name, score in found if score >= THRESHOLD]
    wrong = Counter(name for name, _ in found if name not in right)
    accuracy = 1 - wrong.total() / len(found)
    precision = sum(name in right for name in kept) / len(kept) if kept else 0.0
    confused = ", ".join(f"{name} {count / len(found):.2f}" for name, count in wrong.most_common(3))
    shares = f"{accuracy:9.4f} {len(kept) / len(found):6.3f} {precision:14.4f}"
    return accuracy, f"{language:<9} {len(found):9} {shares}  {confused}"


def read(path: Path) -> dict[str, list[str]]:
    """The sentences of each language."""
    files = sorted(path.rglob("*.tsv*")) if path.is_dir() else [path]
    sentences = defaultdict(list)
    for file in files:
        data = file.read_bytes()
        for line in (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8").split("\n"):
            language, tab, sentence = line.partition("\t")
            if tab:
                sentences[language].append(sentence)
    return dict(sentences)


def all_labels(model: object) -> list[str]:
    """Every label of the model: what it gives to an empty guess with no limit on how many."""
    labels, _ = model.predict("a", k=-1, threshold=-1.0)  # type: ignore[attr-defined]
    return list(labels)


if __name__ == "__main__":
    main()
