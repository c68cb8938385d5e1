"""What importing the corpus package costs: nothing for itself, and never torch."""

import os
import subprocess
import sys

import pytest

ALL = """
import importlib, pkgutil, megalm.corpus
for module in pkgutil.walk_packages(megalm.corpus.__path__, "megalm.corpus."):
    importlib.import_module(module.name)
"""


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import megalm.corpus", ("datatrove", "pydantic", "yaml", "numpy", "torch")),
        ("import megalm.corpus.recipe", ("fastwarc", "pyarrow", "trafilatura", "lxml", "torch")),
        (ALL, ("torch", "transformers", "spacy", "nltk")),
    ],
    ids=["package", "recipe", "everything"],
)
def test_imports_stay_cheap_and_without_torch(code, unwanted):
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print([n for n in {unwanted} if n in sys.modules])"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
