"""Stores with a few conversations, for the tests of feedback."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megalm.feedback.origin import Origin
from megalm.feedback.store import Answer, Said, Store, Who

ANN, BOB = Who("key", "ann"), Who("key", "bob")


def open_store(folder: Path) -> Store:
    """A new one."""
    return Store(f"sqlite:///{folder}/store.db")


def user(text: str) -> list[dict[str, Any]]:
    """The messages of a question."""
    return [{"role": "user", "content": text}]


def say(
    store: Store,
    reply: str,
    question: str | list[dict[str, Any]],
    answers: str | Sequence[str],
    who: Who = ANN,
    **more: Any,
) -> str:
    """Keep an exchange; its reply's id. Models, finish reasons, conversations and consent have values where none are given."""
    texts = [answers] if isinstance(answers, str) else answers
    reason = more.pop("finish_reason", "stop")
    origin = Origin("runs/tiny/checkpoints/step_00000007", 7, "ab" * 32)
    values = {
        "model": "tiny",
        "messages": user(question) if isinstance(question, str) else question,
        "options": {"seed": 1},
        "conversation": "talk",
        "consent": True,
    }
    store.keep(who, Said(reply=reply, **values | more), origin, [Answer(text, reason) for text in texts])
    return reply
