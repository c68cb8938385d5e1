#!/usr/bin/env python3
"""Asks one `megalm serve` for minutes on end, in many ways at once, and holds every answer to what the same request brought alone.

Clients draw from a fixed set of requests (prompts of many lengths, sampled and greedy, several answers, log-probabilities, stop strings), take
answers whole or as a stream, go away in the middle, send requests that are refused, and rate what was kept. Counted: answers that are not those
that were told first (lost, changed, crossed), failures, texts still open at the end, acknowledged ratings that the store does not have; and the
memory of the front and of the model's process: medians of the first and of the last quarter of the time.

    python benchmarks/soak.py [--minutes 10] [--clients 16] [--output FILE]
"""

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.serve import ROOT, make_model, versions

KINDS = 60
SECONDS_BETWEEN_LOOKS = 5.0
HEADERS = {"Content-Type": "application/json"}
TEXTS, CHATS = "/v1/completions", "/v1/chat/completions"
ROUNDING = 1e-4
"""By which log-probabilities may differ: with other texts beside them sums are made in another order."""


def main() -> int:
    """1 where anything was lost, changed or failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--output", type=Path, help="Write all figures there as JSON.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, "gpt2-14m")
        settings = {
            "models": [{"checkpoint": str(folder / "run"), "name": "model", "chat_template": "plain"}],
            "port": 0,
            "feedback": f"sqlite:///{folder}/store.db",
            "limits": {"max_waiting": 256},
        }
        (folder / "serve.json").write_text(json.dumps(settings))  # which is YAML, too
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "megalm", "serve", "--settings", str(folder / "serve.json")],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
        try:
            line = process.stdout.readline() if process.stdout else ""
            if "serving on" not in line:
                sys.exit(f"the server did not start:\n{(folder / 'log').read_text()[-3000:]}")
            port = int(line.rsplit(":", 1)[1].split("/")[0])
            result = Soak(port, process.pid).run(options.minutes * 60, options.clients)
            process.send_signal(signal.SIGTERM)
            result["exit_code"] = process.wait(60)
        finally:
            process.kill()
        result["tracebacks"] = (folder / "log").read_text().count("Traceback")
    result = {"minutes": options.minutes, "clients": options.clients, "versions": versions()} | result
    print(json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    wrong = ("changed", "failures", "open_texts", "lost_ratings", "exit_code", "tracebacks")
    return int(any(result[what] for what in wrong))


class Soak:
    """What is asked of one server. front: its process."""

    def __init__(self, port: int, front: int) -> None:
        self.port, self.front = port, front
        self.kinds = kinds()
        self.truths = [self.whole(kind)["choices"] for kind in self.kinds]
        self.chats = [
            {
                "model": "model",
                "messages": [{"role": "user", "content": kind["prompt"]}],
                "max_tokens": 16,
                "seed": 1,
            }
            for kind in self.kinds
        ]
        self.replies = [self.whole(chat, CHATS)["choices"] for chat in self.chats]
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.changed: list[dict[str, Any]] = []
        self.ratings: dict[tuple[str, int], int] = {}
        self.lock = threading.Lock()

    def run(self, seconds: float, clients: int) -> dict[str, Any]:
        """All figures."""
        begun = time.monotonic()
        end = begun + seconds
        threads = [threading.Thread(target=self.work, args=(number, end)) for number in range(clients)]
        for thread in threads:
            thread.start()
        memory = []
        while any(thread.is_alive() for thread in threads):
            memory.append([megabytes(self.front), sum(megabytes(child) for child in children(self.front))])
            time.sleep(SECONDS_BETWEEN_LOOKS)
        told = self.get("/v1/models")["data"][0]["id"]
        assert told == "model"
        deadline = time.monotonic() + 30
        while self.open_texts() and time.monotonic() < deadline:
            time.sleep(0.2)
        quarter = max(1, len(memory) // 4)
        return {
            "seconds": time.monotonic() - begun,
            "counts": dict(sorted(self.counts.items())),
            "failures": self.failures[:20],
            "changed": self.changed[:5],
            "open_texts": self.open_texts(),
            "ratings": len(self.ratings),
            "lost_ratings": self.lost_ratings(),
            "memory_mb": {
                name: {
                    "first_quarter": statistics.median(look[place] for look in memory[:quarter]),
                    "last_quarter": statistics.median(look[place] for look in memory[-quarter:]),
                    "most": max(look[place] for look in memory),
                }
                for place, name in enumerate(("front", "model"))
            },
        }

    def work(self, number: int, end: float) -> None:
        draw = random.Random(number)
        ways = [self.take_whole, self.take_stream, self.leave, self.be_refused, self.rate]
        while time.monotonic() < end:
            way = draw.choices(ways, [4, 4, 2, 1, 1])[0]
            try:
                way(draw, number)
                self.counts[way.__name__] += 1
            except Exception as error:
                self.failures.append(f"{way.__name__}: {type(error).__name__}: {error}")

    def take_whole(self, draw: random.Random, _: int) -> None:
        kind = draw.randrange(KINDS)
        self.compare(kind, self.whole(self.kinds[kind])["choices"])

    def take_stream(self, draw: random.Random, _: int) -> None:
        kind = draw.randrange(KINDS)
        texts, reasons = Counter[int](), {}
        found: dict[int, str] = {}
        connection, answer = self.post(TEXTS, self.kinds[kind] | {"stream": True})
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    place = choice["index"]
                    found[place] = found.get(place, "") + choice["text"]
                    texts[place] += 1
                    reasons[place] = choice["finish_reason"] or reasons.get(place)
        connection.close()
        truth = {one["index"]: (one["text"], one["finish_reason"]) for one in self.truths[kind]}
        if {place: (found[place], reasons[place]) for place in found} != truth:
            self.changed.append({"request": self.kinds[kind], "found": found})

    def leave(self, draw: random.Random, _: int) -> None:
        connection, answer = self.post(TEXTS, draw.choice(self.kinds) | {"stream": True})
        for _, _ in zip(answer, range(draw.randrange(6)), strict=False):
            pass
        connection.close()

    def be_refused(self, draw: random.Random, _: int) -> None:
        bad: dict[str, Any] = draw.choice(
            [
                {"temperature": -1},
                {"max_tokens": 10**6},
                {"prompt": [10**9]},
                {"n": 1000},
                {"model": "another"},
            ]
        )
        connection, answer = self.post(TEXTS, self.kinds[0] | bad, wanted=None)
        answer.read()
        connection.close()
        if answer.status not in (400, 404):
            raise RuntimeError(f"{bad} was answered with {answer.status}")

    def rate(self, draw: random.Random, number: int) -> None:
        kind = draw.randrange(KINDS)
        told = {"store": True, "metadata": {"conversation": "all"}}
        reply = self.whole(self.chats[kind] | told, CHATS, f"client{number}")
        if reply["choices"] != self.replies[kind]:
            self.changed.append({"request": self.chats[kind], "found": reply["choices"]})
        value = draw.choice([1, -1])
        rating = {"reply": reply["id"], "choice": 0, "value": value}
        connection, answer = self.post("/v1/feedback/ratings", rating, wanted=201, user=f"client{number}")
        answer.read()
        connection.close()
        with self.lock:
            self.ratings[reply["id"], number] = value

    def compare(self, kind: int, choices: list[dict[str, Any]]) -> None:
        if not is_same(choices, self.truths[kind]):
            self.changed.append({"request": self.kinds[kind], "found": choices})

    def whole(self, body: dict[str, Any], path: str = TEXTS, user: str = "nobody") -> Any:
        connection, answer = self.post(path, body, user=user)
        found = json.loads(answer.read())
        connection.close()
        return found

    def post(
        self, path: str, body: dict[str, Any], wanted: int | None = 200, user: str = "nobody"
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("POST", path, json.dumps(body), HEADERS | {"x-user": user})
        answer = connection.getresponse()
        if wanted is not None and answer.status != wanted:
            raise RuntimeError(f"{answer.status}: {answer.read().decode()[:300]}")
        return connection, answer

    def get(self, path: str, user: str = "nobody") -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request("GET", path, headers={"x-user": user})
        content = connection.getresponse().read()
        connection.close()
        return json.loads(content) if content.startswith(b"{") else content.decode()

    def open_texts(self) -> int:
        """That the model is still writing."""
        lines = self.get("/metrics").splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith("megalm_open_texts{")))

    def lost_ratings(self) -> int:
        """Acknowledged, and not there."""
        kept = {}
        for number in {number for _, number in self.ratings}:
            told = self.get("/v1/feedback/conversations/all", user=f"client{number}")
            for exchange in told["exchanges"]:
                kept[exchange["reply"], number] = (exchange["choices"][0]["rating"] or {}).get("value")
        return sum(kept.get(place) != value for place, value in self.ratings.items())


def is_same(found: Any, wanted: Any) -> bool:
    """Whether two answers are the same but for rounding."""
    if isinstance(wanted, float) and isinstance(found, float):
        return abs(found - wanted) <= ROUNDING
    if isinstance(wanted, dict) and isinstance(found, dict):
        return found.keys() == wanted.keys() and all(is_same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list) and isinstance(found, list):
        return len(found) == len(wanted) and all(map(is_same, found, wanted))
    return bool(found == wanted)


def kinds() -> list[dict[str, Any]]:
    """The requests; each brings the same answer whenever it is made."""
    draw = random.Random(2)
    found = []
    for number in range(KINDS):
        words = ("".join(draw.choices("abcdefghijklmnop", k=5)) for _ in range(draw.randint(2, 100)))
        one: dict[str, Any] = {
            "model": "model",
            "prompt": " ".join(words),
            "max_tokens": draw.randint(1, 96),
            "seed": number,
            "temperature": draw.choice([0, 0.7, 1.0]),
        }
        one |= draw.choice(
            [{}, {}, {"logprobs": 3}, {"stop": ["a", " c"]}, {"presence_penalty": 0.5}, {"n": 3}]
        )
        found.append(one)
    return found


def children(process: int) -> list[int]:
    """Its children, and theirs."""
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *children(int(child))]
    return found


def megabytes(process: int) -> float:
    """Memory of a process that is its own (its proportional share)."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
