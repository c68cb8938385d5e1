"""One build over everything that breaks readers: it ends well, in bounded memory, with one warning that counts."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import brotli
import pytest
import zstandard

from megalm.corpus.shards import read_shard, shard_paths
from tests.corpus.documents import prose
from tests.corpus.sources.test_warc import flipped, record

GIGABYTE = 1 << 30
PIECE = bytes(16 << 20)
ARTICLE = "<html><body><article>" + "".join(f"<p>{line}</p>" for line in prose(1).split("\n")) + "</article>"
BOUND = 200 << 20
"""Of resident memory; the interpreter with its libraries has 70 MB, a document may have 16."""

CHILD = """
import resource, sys
from megalm.cli import main
from tests.memory import peak_bytes
code = main(sys.argv[1:])
print(max(peak_bytes(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10))
sys.exit(code)
"""


def write_pages(path: Path) -> None:
    """A WARC file of four good pages between bombs, nests and damage."""
    bomb = b"<html>" + b"a" * 200_000_000
    bodies = {
        "gzip": gzip.compress(bomb, 1),
        "br": brotli.compress(bomb, quality=1),
        "zstd": zstandard.compress(bomb),
    }
    members = [record(1, body=ARTICLE.encode())]
    members += [record(2, headers=f"Content-Encoding: {name}", body=body) for name, body in bodies.items()]
    members += [record(3, body=b"<html>" + b"<div>" * 100_000 + b"deep" + b"</div>" * 100_000)]
    members += [
        record(4, body=ARTICLE.encode()),
        record(5, body=ARTICLE.replace("e", "\xe9").encode("latin-1")),
    ]
    members += [record(6, body=b"<html>" + b"a" * 40_000_000)]  # in a member of 40 kB
    zipped = [gzip.compress(member, 1) for member in members]
    damaged = flipped(gzip.compress(record(7)), 40)
    cut = gzip.compress(record(8))[:-100]
    path.write_bytes(
        b"".join([*zipped[:4], damaged, *zipped[4:], gzip.compress(record(9, body=ARTICLE.encode())), cut])
    )


def write_lines(folder: Path) -> None:
    """Lines of a gigabyte between short ones: with a hole, of gzip's members, of zstd's frames."""
    short = b'{"text": "%s"}\n'
    with open(folder / "giant.jsonl", "wb") as file:
        file.write(short % b"before")
        file.seek(GIGABYTE, os.SEEK_CUR)
        file.write(b"\n" + short % b"after")
    for name, compress in (("gz", lambda data: gzip.compress(data, 1)), ("zst", zstandard.compress)):
        pieces = [
            compress(short % b"before"),
            compress(PIECE) * (GIGABYTE // len(PIECE)),
            compress(b"\n" + short % b"after"),
        ]
        (folder / f"giant.jsonl.{name}").write_bytes(b"".join(pieces))
    with open(folder / "giant.txt", "wb") as file:
        file.truncate(GIGABYTE)


def write_oddities(path: Path) -> None:
    """Lines that parsers refuse, and such as only writers do."""
    deep = '{"text": "deep", "x": ' + "[" * 300 + "]" * 300 + "}"
    deeper = '{"text": "deeper", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    kept = [
        b'{"text": "gr\xfc\xdfe", "number": 123456789012345678901234567890}',
        b'{"text": "surrogate \\ud800", "number": 1e400, "x": NaN}',
        b'\xef\xbb\xbf{"text": "mark"}',
    ]
    path.write_bytes(b"\n".join([*kept, deep.encode(), deeper.encode(), b"{broken", b'"text"', b"\0" * 100]))


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limits of pages are Linux's")
def test_every_kind_of_broken_input_is_counted_in_one_warning_within_bounded_memory(tmp_path):
    inputs = tmp_path / "in"
    inputs.mkdir()
    write_pages(inputs / "pages.warc.gz")
    write_lines(inputs)
    write_oddities(inputs / "odd.jsonl")
    recipe = {
        "output": str(tmp_path / "out"),
        "sources": [{"kind": kind, "path": str(inputs)} for kind in ("warc", "jsonl", "text")],
        "steps": [{"extract": {"mode": "fast"}}],
        "task_bytes": 256 << 20,
        "executor": {"workers": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "corpus", "build", str(tmp_path / "recipe.yaml"), "--json"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report, peak = done.stdout.splitlines()
    sources = {source["step"]: source for source in json.loads(report)["sources"]}
    assert sources["warc"]["counters"] == {"broken": 2, "too_large": 4}
    assert sources["jsonl"]["counters"] == {"broken": 5, "invalid_utf8": 2, "too_large": 3}
    assert sources["text"]["counters"] == {"too_large": 1}
    warnings = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    assert warnings == [
        "megalm: warning: records in the sources that could not be read whole: 7 broken, 8 too large, "
        "2 with invalid UTF-8 (read with U+FFFD in its place); no document came from `text`; check its kind, path and keys"
    ]
    assert json.loads(report)["steps"][0]["removed"] == {"extract.too_deep": 1}
    texts = [
        document.text for path in shard_paths(tmp_path / "out/documents") for document in read_shard(path)
    ]
    assert (
        texts.count("before") == texts.count("after") == 3 and "mark" in texts and "gr\ufffd\ufffde" in texts
    )
    assert len(texts) == 4 + 6 + 3
    assert int(peak) < BOUND, f"{int(peak) >> 20} MiB"
