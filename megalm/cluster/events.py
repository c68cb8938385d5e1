"""What happened to a run's jobs, a JSON line each in RUN/cluster/events.jsonl: written by the jobs, read by `megalm runs`."""

import json
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megalm.lineage.record import now

FILE_NAME = "events.jsonl"
STARTED, ENDED, FAILED, QUEUED, EXCLUDED, STOPPED = (
    "started",
    "ended",
    "failed",
    "queued",
    "excluded",
    "stopped",
)


def tell(folder: Path, job: str, event: str, **more: Any) -> None:
    """Append one event, and print it; nodes write to the same file, each line in one piece."""
    facts = ", ".join(f"{name} {_shown(value)}" for name, value in more.items() if value is not None)
    print(f"megalm: {event}{': ' if facts else ''}{facts}", flush=True)
    line = {"time": now(), "job": job, "event": event, "node": socket.gethostname(), **more}
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder / FILE_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(number, (json.dumps(line) + "\n").encode())
        os.fsync(number)
    finally:
        os.close(number)


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def events_of(folder: Path, job: str | None = None) -> Iterator[dict[str, Any]]:
    """Events in the order in which they were written; those of one job alone where it is given."""
    try:
        lines = (folder / FILE_NAME).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # cut off by a full disk or a crash
            continue
        if isinstance(event, dict) and job in (None, event.get("job")):
            yield event


def failed_starts(events: Iterable[dict[str, Any]]) -> set[int]:
    """Which starts of a job (from 1) have failed; where ranks of several nodes die together, each node tells of it."""
    start, failed = 0, set()
    for event in events:
        start += event["event"] == STARTED
        if event["event"] == FAILED:
            failed.add(start)
    return failed
