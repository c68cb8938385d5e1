"""What was acknowledged is there after the process that wrote it was killed, at whatever moment."""

import os
import random
import signal
from pathlib import Path

from megalm.feedback.conversations import show_conversation
from megalm.feedback.opinions import Place, rate
from megalm.feedback.store import Store
from tests.feedback.small import ANN, say

KILLS = 12
RATINGS = 200


def rate_until_killed(address: str, start: int, told: int) -> None:
    """Keep an answer and rate it, and tell its number once that is acknowledged."""
    store = Store(address)
    for number in range(start, start + RATINGS):
        say(store, f"r{number}", "?", f"{number}")
        rate(store, ANN, Place(f"r{number}", 0), 1 if number % 3 else -1)
        os.write(told, f"{number}\n".encode())


def killed_after(acknowledged: int, address: str, start: int) -> list[int]:
    """The numbers that a process told before it was killed, some time after it had told that many."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reads)
            rate_until_killed(address, start, writes)
        finally:
            os._exit(1)
    os.close(writes)
    with open(reads) as lines:
        told = [int(next(lines)) for _ in range(acknowledged)]
        os.kill(child, signal.SIGKILL)
        told += [int(line) for line in lines]  # told in the meantime; a line is written whole
    os.waitpid(child, 0)
    return told


def test_acknowledged_ratings_survive_kills_at_random_moments(tmp_path: Path) -> None:
    address, chance = f"sqlite:///{tmp_path}/store.db", random.Random(3)
    acknowledged: list[int] = []
    for kill in range(KILLS):
        acknowledged += killed_after(chance.randint(1, 8), address, kill * RATINGS)
    shown = show_conversation(Store(address), ANN, "talk")["exchanges"]
    kept = {exchange["reply"]: exchange["choices"][0]["rating"] for exchange in shown}
    assert len(acknowledged) >= KILLS
    for number in acknowledged:
        rating = kept[f"r{number}"]
        assert rating is not None and rating["value"] == (1 if number % 3 else -1)
