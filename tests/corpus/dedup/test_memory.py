"""Peak memory does not grow with the corpus, neither with the number of shards nor with their size."""

import os
import subprocess
import sys

import pytest

ALLOWED = 18 << 20
"""Bytes that ten times the documents (45,000 more, 15 MB of text, 80 MB of keys) may need in addition."""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["exact", "near", "lines", "mix"])
def test_ten_times_the_documents_need_no_more_memory(tmp_path, step):
    peaks = []
    for count, shards in ((5_000, 1), (50_000, 1), (50_000, 10)):
        command = [sys.executable, "-m", "tests.corpus.dedup.memory_worker", step, str(count), str(shards)]
        folder = tmp_path / f"{count}-{shards}"
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=True, env=env)
        peaks.append(int(done.stdout))
    assert max(peaks) - peaks[0] < ALLOWED
