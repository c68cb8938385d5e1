"""A disk that is really full: one line that names the folder, and the build goes on when there is space."""

import json
import os
import subprocess
import sys

import pytest

from megalm.corpus.build import build_corpus
from megalm.corpus.recipe import load_recipe
from tests.corpus.recipes import make_inputs

STEPS = [
    "length",
    "exact_duplicates",
    {"near_duplicates": {"ngram": 1, "verify": True}},
    {"mix": {"splits": "80,20"}},
]
SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 100_000)  # KiB


def apart(*command: str, **options) -> subprocess.CompletedProcess[str]:
    """Run a command that may mount what no other process sees."""
    own = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else [])]
    return subprocess.run([*own, *command], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def mount_point(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        tried = apart("mount", "-t", "tmpfs", "tmpfs", str(folder))
    except OSError as error:
        pytest.skip(f"no unshare here: {error}")
    if tried.returncode:
        pytest.skip(f"no file system may be mounted here: {tried.stderr.strip()}")
    return folder


def test_a_full_disk_is_told_in_one_line_at_any_stage_and_the_build_goes_on(tmp_path, mount_point):
    recipe = {
        "output": str(mount_point / "out"),
        "sources": [{"kind": "jsonl", "path": str(make_inputs(tmp_path / "in", documents=40))}],
        "steps": STEPS,
        "tasks": 2,
        "keep_removed": True,
        "executor": {"workers": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    sizes = map(str, SIZES)
    module = [sys.executable, "-m", "tests.corpus.full_disk", str(tmp_path / "recipe.yaml")]
    done = apart(*module, str(mount_point), *sizes, env=variables)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    *failed, (code, _) = said["results"]
    assert code == 0 and said["left"] == []
    failed = [result for result in failed if result[0]]
    assert len(failed) > 4
    for code, errors in failed:
        last = errors.splitlines()[-1]
        assert code == 2 and last.startswith(f"megalm: error: {mount_point}/out")
        assert last.endswith(": No space left on device; free some space there, then give the command again")
        assert "Traceback" not in errors and errors.count("error") == 1
    whole = load_recipe(tmp_path / "recipe.yaml", [f"output={tmp_path / 'whole'}"])
    build_corpus(whole)
    shards = {path.name: path.read_bytes().hex() for path in (tmp_path / "whole/documents").glob("*.zst")}
    assert len(shards) > 1 and said["shards"] == shards
