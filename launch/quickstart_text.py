"""Writes the Python standard library's sources and docstrings as JSONL documents: real text that every machine has."""

import argparse
import ast
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# Tests, other people's packages, and files that a program wrote (tables of characters, topics, constants).
SKIPPED_FOLDERS = {
    "__phello__", "__pycache__", "dist-packages", "encodings", "idle_test", "lib2to3", "site-packages", "test", "tests",
}  # fmt: skip
SKIPPED_FILES = {"topics.py", "entities.py", "token.py", "opcode.py", "_opcode_metadata.py", "keyword.py"}
LARGEST_FILE = 200_000
LICENSE = "PSF-2.0"


def main() -> None:
    """Write documents until the text is as long as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="JSONL file to write")
    parser.add_argument("--max-bytes", type=int, default=12_000_000, help="stop after so much text")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    count = total = 0
    temporary = arguments.output.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for document in documents(Path(os.__file__).parent):
            size = len(document["text"].encode())
            if total + size > arguments.max_bytes:
                break
            file.write(json.dumps(document) + "\n")
            count, total = count + 1, total + size
    temporary.replace(arguments.output)
    print(f"{arguments.output}: {count} documents, {total / 1e6:.1f} MB, Python {sys.version.split()[0]}")


def documents(library: Path) -> Iterator[dict]:
    """Yield two documents for each module, its docstrings and its source, in the order of their names."""
    for module, source, tree in modules(library):
        for kind, text in (("docstrings", docstrings(module, tree)), ("source", source)):
            if text.strip():
                metadata = {"module": module, "kind": kind, "license": LICENSE}
                yield {"id": f"{module}:{kind}", "text": text, "metadata": metadata}


def modules(library: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield name, source and syntax tree of each module, in the order of their names."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if SKIPPED_FOLDERS.intersection(relative.parts) or path.name in SKIPPED_FILES:
            continue
        if path.name.startswith("_sysconfigdata") or path.stat().st_size > LARGEST_FILE:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        yield ".".join(relative.with_suffix("").parts).removesuffix(".__init__"), source, tree


def docstrings(module: str, tree: ast.Module) -> str:
    """The docstrings of a module, its classes and functions, each under its full name."""
    parts: list[str] = []

    def visit(node: ast.AST, name: str) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                parts.append(f"{name}\n\n{text}")
            for child in node.body:
                visit(child, f"{name}.{getattr(child, 'name', '')}")

    visit(tree, module)
    return "\n\n\n".join(parts)


if __name__ == "__main__":
    main()
