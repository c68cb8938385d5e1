"""The text of the quickstart: real, bounded, from this machine, and without tests or other people's packages."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "launch" / "quickstart_text.py"


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
