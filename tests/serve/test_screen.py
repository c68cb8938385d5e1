"""No token is told of what is hidden, however the model's text comes behind its tokens."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalm.generate.text import GrowingText
from megalm.moderation.audit import Audit
from megalm.moderation.policy import Policy
from megalm.moderation.screen import check
from megalm.moderation.settings import PolicySettings
from megalm.serve.metrics import Metrics
from megalm.serve.screen import Asker, OutputScreen, Screen
from megalm.serve.world import Piece
from megalm.tokenizer import Tokenizer, load_tokenizer

WORDS = [
    "the",
    " hand",
    " end",
    " é",
    "é",
    " ann@",
    "example.com",
    " of",
    "\n",
    ", ",
    "hands",
    " 12",
    "日本",
    "日",
    "x",
]


def policy(action: str, **more: Any) -> Policy:
    categories = {
        "words": {"output": action, "words": ["of the hand", "日本"], "mask": "#"},
        "personal": {"output": "mask", "pii": ["email", "phone"]},
    }
    return Policy(PolicySettings.model_validate({"categories": categories} | more))


POLICIES = {action: policy(action) for action in ("mask", "block")}


@pytest.fixture(scope="module")
def tokenizer(run: Path) -> Tokenizer:
    return load_tokenizer(run / "tokenizer")


def written(tokenizer: Tokenizer, ids: list[int], stop: list[str]) -> list[Piece]:
    """What a world tells of these tokens, where text that may become a stop string is held back."""
    text, pieces = GrowingText(tokenizer, [], stop), []
    for number, token in enumerate(ids):
        piece = text.push(token)
        is_last = text.stopped or number == len(ids) - 1
        pieces.append(
            Piece(
                0,
                piece + (text.finish() if is_last else ""),
                {"id": token, "logprob": -1.0, "top": {}, "place": number},
                "length" if is_last else None,
                number + 1,
                cut=text.cut if is_last else "",
            )
        )
        if is_last:
            return pieces
    return pieces


def through(screen: OutputScreen, pieces: list[Piece]) -> list[Piece]:
    async def source() -> AsyncIterator[tuple[int, Piece]]:
        for piece in pieces:
            yield 0, piece

    async def take() -> list[Piece]:
        return [piece async for _, piece in screen.through(source())]

    return asyncio.run(take())


@given(data=st.data())
def test_tokens_of_hidden_places_are_never_told(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12)))
    ids = tokenizer.encode(text) or [5]
    ids += data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=3))
    stop = data.draw(st.sampled_from([[], ["of the handle"], ["the hand of all", "example.come"]]))
    chosen = POLICIES[data.draw(st.sampled_from(["mask", "block"]))]
    pieces = written(tokenizer, ids, stop)
    cut = pieces[-1].cut
    whole = check(chosen, "".join(piece.text for piece in pieces) + cut, "output")
    screen = OutputScreen(Screen(chosen, None, Metrics()), Asker("r", "c"), 1, tokenizer)
    shown = through(screen, pieces)
    assert "".join(piece.text for piece in shown) == whole.text.removesuffix(cut)
    assert [piece.reason for piece in shown if piece.reason] == [
        "length" if whole.blocked is None else "content_filter"
    ]
    told = [piece.token["place"] for piece in shown if piece.token]
    assert told == sorted(set(told))
    if not whole.findings:
        assert told == list(range(len(pieces)))
    # where each token's bytes are in the text, of texts in which no byte was left out or replaced
    ends = [sum(len(tokenizer.token_bytes(one)) for one in ids[: n + 1]) for n in range(len(pieces))]
    original = "".join(piece.text for piece in pieces) + cut
    if tokenizer.decode(ids) == original and len(original.encode()) == ends[-1]:
        for finding in whole.findings:
            begin, end = (len(original[:place].encode()) for place in (finding.begin, finding.end))
            last = len(original.encode()) if finding.action == "block" else end
            for place in told:
                before = ends[place - 1] if place else 0
                assert ends[place] <= begin or before >= last, "a token of what is hidden"


@pytest.mark.parametrize(("said", "stop"), [("ann@example.com", ".com"), ("end of the hand", "hand")])
def test_what_is_hidden_is_not_shown_for_ending_in_a_stop_string(
    tokenizer: Tokenizer, said: str, stop: str
) -> None:
    pieces = written(tokenizer, tokenizer.encode(f"the {said}, the end"), [stop])
    assert pieces[-1].cut == stop
    screen = OutputScreen(Screen(POLICIES["block"], None, Metrics()), Asker("r", "c"), 1, tokenizer)
    shown = through(screen, pieces)
    text = "".join(piece.text for piece in shown)
    assert text in ("the <EMAIL>", "the end ")
    told = b"".join(tokenizer.token_bytes(piece.token["id"]) for piece in shown if piece.token)
    assert b"@" not in told and b"hand" not in told and b" of" not in told


def test_the_audit_log_tells_what_was_found_and_not_the_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for keeps in (False, True):
        log, metrics = tmp_path / f"{keeps}.jsonl", Metrics()
        chosen = policy("block", keep_text=keeps)
        screen = Screen(chosen, Audit(log), metrics)
        ids = tokenizer.encode("the end of the hand of the hand")
        output = OutputScreen(screen, Asker("r1", "alice"), 1, tokenizer)
        through(output, written(tokenizer, ids, []))
        assert output.refusal(0) == chosen.settings.refusal
        through(OutputScreen(screen, Asker("r2", "alice"), 1, tokenizer), written(tokenizer, ids[:2], []))
        [line] = [json.loads(line) for line in log.read_text().splitlines()]
        assert (line["request"], line["client"], line["side"]) == ("r1", "alice", "output")
        assert (line["action"], line["categories"]) == ("block", {"words": 1.0})
        assert ("text" in line) == keeps and ("hand" in log.read_text()) == keeps
        assert log.stat().st_mode & 0o077 == 0
        assert metrics.moderated.labels("words", "output", "block")._value.get() == 1
