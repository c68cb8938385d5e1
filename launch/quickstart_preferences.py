"""Makes preferences and prompts of the questions that quickstart_questions.py wrote: the right answer is preferred to its words in disorder."""

import argparse
import json
import random
from pathlib import Path

FEWEST_WORDS = 5
PROMPTS, HELD_OUT = 512, 32


def main() -> None:
    """Write preferences.jsonl, prompts.jsonl and prompts_held_out.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", type=Path, help="JSONL file of questions")
    parser.add_argument("output", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if len(record["output"].split()) >= FEWEST_WORDS]
    pairs = [
        {
            "prompt": record["instruction"],
            "chosen": record["output"],
            "rejected": disordered(record["output"]),
        }
        for record in records
    ]
    prompts = [{"prompt": pair["prompt"]} for pair in random.Random(0).sample(pairs, PROMPTS + HELD_OUT)]
    for name, rows in (
        ("preferences", pairs),
        ("prompts", prompts[HELD_OUT:]),
        ("prompts_held_out", prompts[:HELD_OUT]),
    ):
        path = arguments.output / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)}")


def disordered(text: str) -> str:
    """The same words in another order, the same one for the same text."""
    words = text.split()
    random.Random(text).shuffle(words)
    return " ".join(words)


if __name__ == "__main__":
    main()
