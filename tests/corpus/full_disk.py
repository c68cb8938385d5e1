"""Runs `megalm corpus build RECIPE` with the output on a file system of its own, too small at first and larger each time.

In a mount namespace: `full_disk RECIPE DIRECTORY KILOBYTES ...` prints what each build said, and the shards, as JSON.
"""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

from megalm import cli


def build(recipe: str, workers: int) -> tuple[int, str]:
    """Exit code and what was written to stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["corpus", "build", recipe, "--workers", str(workers)])
    return code, errors.getvalue()


def main(recipe: str, directory: str, sizes: list[str]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    results = []
    for number, size in enumerate(sizes):
        subprocess.run(["mount", "-o", f"remount,size={size}k", directory], check=True)
        results.append(build(recipe, workers=2 if number == 0 else 1))
    output = Path(directory) / "out"
    shards = {path.name: path.read_bytes().hex() for path in (output / "documents").glob("*.zst")}
    left = [path.name for path in output.rglob(".*.tmp")]
    print(json.dumps({"results": results, "shards": shards, "left": left}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
