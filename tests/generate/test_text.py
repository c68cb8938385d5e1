"""Text grows by whole characters and ends before the first stop string, whatever tokens spell it."""

from pathlib import Path

import pytest

from megalm.generate.text import GrowingText
from megalm.tokenizer import Tokenizer, train_bpe

TEXT = "the naïve café 🦙 says: hello world, hello there. the end of the café\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    return train_bpe([folder / "text.txt"], 290, folder / "tokenizer")


def grow(tokenizer: Tokenizer, text: str, stop: list[str], prompt: str = "") -> tuple[list[str], GrowingText]:
    """Push tokens until a stop string is met; the pieces and the grown text."""
    growing = GrowingText(tokenizer, tokenizer.encode(prompt), stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(growing.push(token))
        if growing.stopped:
            break
    pieces.append(growing.finish())
    assert "".join(pieces) == growing.text
    return pieces, growing


def test_pieces_are_whole_characters_and_give_the_text(tokenizer: Tokenizer) -> None:
    pieces, growing = grow(tokenizer, TEXT + "🦒🦒", [], prompt="a 🦙")
    assert growing.text == TEXT + "🦒🦒"
    assert not growing.stopped
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(tokenizer.encode("🦒")) > 1, "the character has to span tokens"


@pytest.mark.parametrize("stop", ["hello", "o w", "café 🦙 s", "world, hello there", "the naïve"])
def test_text_ends_before_the_stop_string_however_it_is_cut_into_tokens(
    tokenizer: Tokenizer, stop: str
) -> None:
    _, growing = grow(tokenizer, TEXT, [stop])
    assert growing.stopped
    assert growing.text == TEXT[: TEXT.index(stop)]


def test_of_stop_strings_completed_at_once_the_earliest_counts(tokenizer: Tokenizer) -> None:
    _, growing = grow(tokenizer, TEXT, ["there", "llo world", "hello world", "absent"])
    assert growing.text == TEXT[: TEXT.index("hello world")]


def test_no_part_of_a_stop_string_is_shown(tokenizer: Tokenizer) -> None:
    pieces, growing = grow(tokenizer, TEXT, ["world, hello there!"])
    assert not growing.stopped
    assert growing.text == TEXT
    at = TEXT.index("world, hello there.")
    held = TEXT[at : at + len("world, hello there")]
    shown = ""
    for piece in pieces[:-1]:
        shown += piece
        assert len(shown) <= at or len(shown) >= at + len(held), (
            f"{shown[at:]!r} could still have become a stop string"
        )


def test_a_stop_string_in_the_prompt_does_not_stop(tokenizer: Tokenizer) -> None:
    _, growing = grow(tokenizer, " world", ["hello"], prompt="hello")
    assert growing.text == " world"
    assert not growing.stopped


def test_held_back_text_comes_at_the_end(tokenizer: Tokenizer) -> None:
    pieces, growing = grow(tokenizer, "hello wor", ["world"])
    assert growing.text == "hello wor"
    assert pieces[-1] == "wor"
    assert not growing.stopped


def test_an_open_character_at_the_end_is_a_replacement_character(tokenizer: Tokenizer) -> None:
    growing = GrowingText(tokenizer, [], [])
    tokens = tokenizer.encode("a🦒")
    for token in tokens[:-1]:
        growing.push(token)
    assert growing.text == "a"
    growing.finish()
    assert growing.text == tokenizer.decode(tokens[:-1])
    assert "\ufffd" in growing.text
