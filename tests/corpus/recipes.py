"""Inputs and recipes that the tests of the corpus share."""

import json
from pathlib import Path

from megalm.corpus.recipe import parse_recipe

WORDS = "the quick brown fox jumps over a lazy zebra while seven wizards watch".split()


def make_inputs(folder: Path, files: int = 3, documents: int = 20) -> Path:
    """JSONL files of short documents, some with "zebra" in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        lines = []
        for number in range(documents):
            words = [
                WORDS[(number * 7 + file * 3 + place * place) % len(WORDS)] for place in range(number % 9 + 1)
            ]
            lines.append(json.dumps({"id": f"{file}-{number}", "text": " ".join(words), "kind": number % 2}))
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def make_recipe(inputs: Path, output: Path, steps: list, workers: int = 1, **keys):
    """A recipe over `inputs` with six tasks."""
    data = {"tasks": 6, "executor": {"workers": workers}} | keys
    return parse_recipe(
        {"output": str(output), "sources": [{"kind": "jsonl", "path": str(inputs)}], "steps": steps} | data
    )


def documents_of(output: Path) -> dict[str, bytes]:
    """Name and bytes of each file of a corpus that users read, but for times."""
    files = {
        path.relative_to(output).as_posix(): path.read_bytes()
        for folder in ("documents", "removed")
        for path in sorted((output / folder).rglob("*"))
        if path.is_file()
    }
    report = json.loads((output / "report.json").read_text())
    for step in [*report["sources"], *report["steps"], report["kept"], *report["stages"]]:
        step["seconds"] = 0
    report["recipe"]["output"] = ""
    return files | {"report": json.dumps(report).encode()}
