"""Conversations, a tokenizer and token files of them, so small that every test can afford them."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from megalm.dataset import Extras, build_dataset
from megalm.dataset.chat import ChatSettings
from megalm.tokenizer import train_bpe
from tests.tokenizer.test_bpe import WORDS, make_texts, write_jsonl

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")


def make_tokenizer(folder: Path) -> Path:
    """A tokenizer that can write ChatML."""
    texts = [*make_texts(60), "user assistant system"]
    train_bpe(
        [write_jsonl(folder / "texts.jsonl", texts)], 330, folder / "tokenizer", special_tokens=CHAT_TOKENS
    )
    return folder / "tokenizer"


def make_chats(count: int, seed: int = 0, most_words: int = 8) -> list[list[dict[str, Any]]]:
    """Messages of one to three exchanges, some with a system's text."""
    random = Random(seed)

    def said(role: str) -> dict[str, Any]:
        return {"role": role, "content": " ".join(random.choices(WORDS, k=random.randint(1, most_words)))}

    chats = []
    for number in range(count):
        system = [said("system")] if number % 3 == 0 else []
        exchanges = [[said("user"), said("assistant")] for _ in range(random.randint(1, 3))]
        chats.append(system + [turn for exchange in exchanges for turn in exchange])
    return chats


def write_chats(path: Path, chats: Sequence[list[dict[str, Any]]]) -> Path:
    lines = [json.dumps({"id": number, "messages": chat}) for number, chat in enumerate(chats)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def build_chats(
    inputs: Sequence[Path], tokenizer: Path, prefix: Path, template: str = "chatml", **settings: Any
) -> dict[str, Any]:
    """Token files with one split, PREFIX_train; `settings` as ChatSettings, and of the build in `build`."""
    options = {"workers": 1, "splits": "1", **settings.pop("build", {})}
    extras = Extras(chat=ChatSettings.of(tokenizer, template, **settings), **options.pop("extras", {}))
    return build_dataset(inputs, tokenizer, prefix, extras=extras, **options)
