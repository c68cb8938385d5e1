"""Crawls the documentation that ships with Python into a WARC file, from pydoc's own server on the loopback interface."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

READY = "Server ready at "


def main() -> None:
    """Serve, crawl, stop serving."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="WARC file to write, .warc.gz")
    parser.add_argument("--max-pages", type=int, default=300)
    arguments = parser.parse_args()
    with pydoc_server() as address:
        crawl = ["corpus", "crawl", address, "--output", arguments.output, "--delay", "0"]
        command = [sys.executable, "-m", "megalm", *crawl, "--max-pages", str(arguments.max_pages)]
        sys.exit(subprocess.run(command, check=False).returncode)


@contextmanager
def pydoc_server() -> Iterator[str]:
    """The address of a server that lives as long as the block; it shows the standard library alone (-S)."""
    # a page is made by importing its module, and one of them, antigravity, opens a browser
    environment = os.environ | {"BROWSER": "true"}
    command = [sys.executable, "-I", "-S", "-m", "pydoc", "-n", "localhost", "-p", "0"]
    server = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdin and server.stdout
        line = next((line for line in server.stdout if READY in line), None)
        if line is None:
            sys.exit("pydoc did not begin to serve")
        yield line.partition(READY)[2].split()[0]
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
