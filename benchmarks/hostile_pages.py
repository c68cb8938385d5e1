"""Pages made to break parsers, each through the step `extract`: what becomes of it, in what time and memory.

Every page runs in a new process, so that the memory is its own: the peak of the worker and of the process that parses.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megalm.corpus.clean.extract import Extract
from megalm.corpus.pages import page_document

COUNT = 100_000
PAGES = {
    "an ordinary page": lambda: "<html><body><article>" + "<p>Some words stand here.</p>" * 100,
    "1 GB of one letter": lambda: b"a" * 10**9,
    "9 MB of text in one element": lambda: "<p>" + "lorem ipsum dolor " * 500_000,
    "10^5 nested <div>, closed": lambda: "<div>" * COUNT + "text" + "</div>" * COUNT,
    "10^5 nested <b>, open": lambda: "<b>" * COUNT + "text",
    "10^5 nested tables": lambda: "<table><tr><td>" * COUNT + "text",
    "10^5 misnested <p><font><b><i>": lambda: "<p><font><b><i>text" * (COUNT // 4),
    "2,000 nested <div>": lambda: "<div>" * 1999 + "some words of text " * 20,
    "2 10^5 attributes": lambda: "<div " + " ".join(f"a{n}=1" for n in range(2 * COUNT)) + ">text</div>",
    "3 10^5 paragraphs": lambda: "<p>lorem ipsum dolor sit amet</p>" * (3 * COUNT),
    "10^6 entities": lambda: "<p>" + "&amp;" * 10**6,
    "9 MB of <": lambda: "<" * 9_000_000,
    "9 MB of NUL": lambda: b"\x00" * 9_000_000,
    "9 MB of bytes of no encoding": lambda: bytes(range(256)) * 35_000,
    "an open comment of 9 MB": lambda: "<!--" + "-" * 9_000_000,
    "an archive": lambda: b"\x1f\x8b\x08" + b"\x00" * 1000,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=("precise", "fast"), default="fast")
    parser.add_argument("--timeout", type=float, default=20.0, help="the step's option")
    parser.add_argument("--page", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.page:
        print(json.dumps(measure(arguments.page, arguments.mode, arguments.timeout)))
        return
    print(f"{'page':<34} {'becomes':<40} {'seconds':>8} {'MB worker':>10} {'MB parser':>10}")
    for name in PAGES:
        command = [sys.executable, __file__, "--mode", arguments.mode, "--timeout", str(arguments.timeout)]
        output = subprocess.run([*command, "--page", name], check=True, capture_output=True, text=True).stdout
        row = json.loads(output.splitlines()[-1])
        print(
            f"{name:<34} {row['becomes']:<40} {row['seconds']:8.2f} {row['worker']:10.0f} {row['parser']:10.0f}"
        )


def measure(name: str, mode: str, timeout: float) -> dict[str, str | float]:
    """What becomes of one page, how long that takes, and the peaks of memory in MB."""
    content = PAGES[name]()
    payload = content if isinstance(content, bytes) else content.encode()
    del content
    step = Extract(Extract.Settings(mode=mode, timeout=timeout))  # type: ignore[arg-type]
    begin = time.perf_counter()
    found = list(step.run(iter([page_document(name, "", payload, "text/html", {})])))
    seconds = time.perf_counter() - begin
    peaks = [
        resource.getrusage(who).ru_maxrss / 1000 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    becomes = next(iter(step.tally.removed), None) or f"{len(found[0].text):,} characters"
    return {"becomes": becomes, "seconds": seconds, "worker": peaks[0], "parser": peaks[1]}


if __name__ == "__main__":
    main()
