"""Servers that tests start and ask."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
import yaml

from megalm import launch

SECONDS = 120.0


@dataclass
class Server:
    """A `megalm serve` of its own. log: what it wrote to stderr so far."""

    process: subprocess.Popen[str]
    url: str
    log: list[str] = field(default_factory=list)

    @property
    def api(self) -> str:
        """Where OpenAI's addresses begin."""
        return f"{self.url}/v1"

    def client(self, **changes: Any) -> httpx.Client:
        """For plain HTTP."""
        return httpx.Client(base_url=self.url, timeout=60, **changes)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        text = self.client().get("/metrics").text
        found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for has, value in found if all(one in has for one in wanted))


@contextlib.contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Server]:
    """A server with these settings, ready to be asked; it is killed at the end if it has not ended."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump({"port": 0} | settings))
    process = subprocess.Popen(
        [sys.executable, "-m", "megalm", "serve", "--settings", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        preexec_fn=launch.die_with_parent,
    )
    log: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
    reader.start()
    try:
        line = process.stdout.readline()
        assert "serving on" in line, f"{line}{''.join(log)}{process.wait(10)}"
        yield Server(process, line.split()[-1].removesuffix("/v1"), log)
    finally:
        process.kill()
        process.wait()


def until(condition: Any, seconds: float = SECONDS) -> None:
    """Return when `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
