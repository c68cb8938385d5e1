"""The input of the quickstart: real, bounded, from this machine, and without tests or other people's packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "launch" / "quickstart_text.py"
PAGES = 20


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of Python's documentation, crawled from pydoc's server."""
    file: Path = tmp_path_factory.mktemp("pages") / "pages.warc.gz"
    run([ROOT / "launch" / "quickstart_pages.py", file, "--max-pages", str(PAGES)])
    return file


def run(command: list) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def build(recipe: str, pages: Path, output: Path) -> dict:
    settings = [f"sources.0.path={pages}", f"output={output}", "--workers", "1"]
    run(["-m", "megalm", "corpus", "build", ROOT / "configs" / "corpus" / recipe, *settings])
    return json.loads((output / "report.json").read_text(encoding="utf-8"))


def test_recipe_for_reference_pages_keeps_most_and_rules_for_prose_hardly_any(
    pages: Path, tmp_path: Path
) -> None:
    mild = build("pydoc.yaml", pages, tmp_path / "mild")
    strict = build("pydoc_strict.yaml", pages, tmp_path / "strict")
    assert mild["documents"] >= PAGES / 2
    assert strict["documents"] < PAGES / 4


def test_documents_of_the_standard_library_within_the_bound(tmp_path):
    output = tmp_path / "documents.jsonl"
    subprocess.run([sys.executable, SCRIPT, output, "--max-bytes", "1000000"], check=True, timeout=300)
    documents = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    by_id = {document["id"]: document for document in documents}
    assert len(by_id) == len(documents)
    assert 800_000 < sum(len(document["text"].encode()) for document in documents) <= 1_000_000
    assert "def literal_eval(" in by_id["ast:source"]["text"]
    assert by_id["ast:docstrings"]["text"].startswith("ast\n\n")
    assert "ast.NodeVisitor.visit\n\nVisit a node." in by_id["ast:docstrings"]["text"]
    assert {document["metadata"]["license"] for document in documents} == {"PSF-2.0"}
    modules = [document["metadata"]["module"].split(".") for document in documents]
    assert not any({"test", "tests", "site-packages", "encodings"}.intersection(names) for names in modules)
