"""Writes questions about the Python standard library with answers from its docstrings: instruction data that every machine has."""

import argparse
import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path

from quickstart_text import modules

SHORTEST_ANSWER, LONGEST_ANSWER = 20, 300  # characters


def main() -> None:
    """Write a record for each function and class of the library that says what it does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="JSONL file to write")
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    records = [
        {"id": name, "instruction": question, "output": answer, "kind": kind}
        for module, _, tree in modules(Path(os.__file__).parent)
        for name, kind, question, answer in questions(module, tree)
    ]
    unique = {record["id"]: record for record in records}.values()
    output.write_text("".join(json.dumps(record) + "\n" for record in unique), encoding="utf-8")
    print(f"{output}: {len(unique)} questions")


def questions(module: str, tree: ast.Module) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, kind, question and answer for what has a docstring and a public name; the answer is its first paragraph."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        answer = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        name = f"{module}.{node.name}"
        public = not any(part.startswith("_") for part in name.split("."))
        if public and SHORTEST_ANSWER <= len(answer) <= LONGEST_ANSWER:
            yield name, kind, f"What is the {kind} {name} for?", answer


if __name__ == "__main__":
    main()
