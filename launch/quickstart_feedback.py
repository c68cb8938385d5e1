"""Stands in for people: asks a served model questions twice each, and says which answer is better, by a rule.

The rule: the better answer has more words in common with the docstring that the question is about (F1 of its different words); alike ones are a tie.
Nobody was asked, so everything is kept under the user `simulated`.
"""

import argparse
import json
import random
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

USER = "simulated"
AT_ONCE = 16
CHOICES = 4


def main() -> None:
    """Ask, rate, and write a task of held-out questions by which a candidate is measured, too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="of the server: http://host:port/v1")
    parser.add_argument("questions", type=Path, help="JSONL file of questions")
    parser.add_argument("task", type=Path, help="folder for the task")
    parser.add_argument("--count", type=int, default=200, help="questions to ask")
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(records)
    asked, held_out = records[: arguments.count], records[arguments.count : 2 * arguments.count]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        picks = list(threads.map(lambda one: rate(arguments.address, *one), enumerate(asked)))
    told = {pick: picks.count(pick) for pick in ("a", "b", "tie")}
    print(f"{len(picks)} questions asked and compared by rule, simulated: {told}")
    write_task(arguments.task, held_out)


def rate(address: str, number: int, record: dict[str, Any]) -> str:
    """Ask one question, two answers of it, and tell which is better."""
    body = {
        "messages": [{"role": "user", "content": record["instruction"]}],
        "n": 2,
        "max_tokens": 32,
        "seed": number,
        "store": True,
        "metadata": {"conversation": f"simulated-{number}", "consent": "yes"},
    }
    answer = post(f"{address}/chat/completions", body)
    first, second = (overlap(choice["message"]["content"], record["output"]) for choice in answer["choices"])
    pick = "tie" if first == second else "a" if first > second else "b"
    places = {name: {"reply": answer["id"], "choice": choice} for choice, name in enumerate("ab")}
    post(f"{address}/feedback/comparisons", places | {"pick": pick})
    if pick != "tie":
        better = {"reply": answer["id"], "choice": "ab".index(pick), "value": 1, "reason": "helpful"}
        post(f"{address}/feedback/ratings", better)
    return pick


def overlap(answer: str, truth: str) -> float:
    """F1 of different words."""
    found, wanted = set(answer.lower().split()), set(truth.lower().split())
    return 2 * len(found & wanted) / (len(found) + len(wanted))


def post(address: str, body: dict[str, Any]) -> Any:
    """Send JSON, get JSON."""
    headers = {"Content-Type": "application/json", "x-user": USER}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.loads(answer.read())


def write_task(folder: Path, records: list[dict[str, Any]]) -> None:
    """Which of some docstrings answers a question: a task for `megalm eval`."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    rows = []
    for record in records:
        others = draw.sample(
            [one["output"] for one in records if one["output"] != record["output"]], CHOICES - 1
        )
        place = draw.randrange(CHOICES)
        choices = [*others[:place], record["output"], *others[place:]]
        rows.append({"query": record["instruction"], "choices": choices, "gold": place})
    (folder / "docstrings.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    (folder / "docstrings.yaml").write_text(
        "name: docstrings\nkind: choice\ndata: docstrings.jsonl\n"
        'prompt: "{{ query }}"\nchoices: choices\nanswer: gold\nmetrics: [acc_norm, acc]\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
