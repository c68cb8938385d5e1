"""What is shown of a text that comes piece by piece is what is shown of the whole, and nothing unchecked is ever shown."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalm.corpus.clean.pii import mask
from megalm.corpus.clean.pii_find import MASKS
from megalm.corpus.clean.pii_patterns import FINDERS
from megalm.moderation.policy import Policy
from megalm.moderation.screen import TextScreen, check
from megalm.moderation.settings import PolicySettings

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIE v3\nab/+=\n-----END RSA PRIVATE KEY-----"
FRAGMENTS = st.sampled_from(
    [
        "kill",
        "kill your",
        "self",
        "k1ll",
        "k\u200bill",
        "KILL  YOURSELF",
        "-harm",
        "a bomb",
        "bombs",
        "炸弹",
        "。",
        "a.b@example.com",
        "@x.org",
        "ann@",
        "+49 30 1234567",
        "4111 1111 1111 1111",
        "4111",
        " 1111",
        "DE89 3704 0044 0532 0130 00",
        "DE89",
        "8.8.8.8",
        "call: 555 1234",
        "sk-" + "a1B2" * 9,
        "https://u:pass1@host.org/x",
        KEY,
        KEY[:20],
        "-----BEGIN ",
        "foo12",
        "foo",
        "bar",
        " ",
        "  ",
        "\n",
        ". ",
        "the end",
        "A",
        "é",
        "e\u0301",
        "1",
        "12",
        "-",
        "(",
        ")",
        "x",
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=12).map("".join)
CUTS = st.lists(st.integers(1, 9), max_size=80)


def policy(**changes: Any) -> Policy:
    categories: dict[str, Any] = {
        "violence": {"output": "block", "words": ["build a bomb", "炸弹"]},
        "threat": {"output": "mask", "words": ["kill yourself", "kill", "self-harm"], "mask": "#"},
        "personal": {"output": "mask", "pii": list(FINDERS)},
        "code": {"output": "mask", "rules": [{"pattern": r"foo\d+(?=\sbar)|\bbar\b", "window": 20}]},
        "mild": {"output": "flag", "words": ["the end"]},
    }
    chosen = {
        name: found | changes.get(name, {})
        for name, found in categories.items()
        if name not in changes.get("without", ())
    }
    return Policy(PolicySettings.model_validate({"categories": chosen}))


ALL = policy()
WORDS = policy(without=("personal", "code"))
BLOCKING = policy(threat={"output": "block"}, personal={"output": "block"}, code={"output": "block"})
RULES = policy(without=("violence", "threat", "personal", "mild"))
PERSONAL = policy(without=("violence", "threat", "code", "mild"))


FLAGGING = policy(without=("violence", "threat", "personal", "code"))
POLICIES = (ALL, BLOCKING, WORDS, RULES, PERSONAL, FLAGGING)


def stream(chosen: Policy, text: str, cuts: list[int]) -> tuple[list[str], TextScreen]:
    """What is shown after each piece; pieces of the lengths in `cuts`, then of one character."""
    screen, shown, place = TextScreen(chosen, "output"), [], 0
    lengths = iter(cuts)
    while place < len(text):
        length = next(lengths, 1)
        shown.append(screen.feed(text[place : place + length]))
        place += length
    return [*shown, screen.feed("", final=True)], screen


@settings(deadline=None, max_examples=60)
@given(TEXTS, CUTS)
def test_a_stream_shows_what_the_whole_does(text: str, cuts: list[int]) -> None:
    for chosen in POLICIES:
        whole = check(chosen, text, "output")
        shown, screen = stream(chosen, text, cuts)
        assert "".join(shown) == whole.text
        assert screen.blocked == whole.blocked
        acted = [finding for finding in whole.findings if finding.action != "flag"]
        found = [finding for finding in screen.findings if finding.action != "flag"]
        assert sorted(found, key=str) == sorted(acted, key=str)


@settings(deadline=None, max_examples=60)
@given(TEXTS, CUTS)
def test_no_character_that_is_masked_or_blocked_is_ever_shown(text: str, cuts: list[int]) -> None:
    for chosen in POLICIES:
        whole = check(chosen, text, "output")
        held = {
            place
            for finding in whole.findings
            if finding.action != "flag"
            for place in range(finding.begin, len(text) if finding.action == "block" else finding.end)
        }
        screen, place = TextScreen(chosen, "output"), 0
        for length in [*cuts, *[1] * len(text)]:
            before = screen.decided
            screen.feed(text[place : place + length])
            place += length
            masked = {place for span in screen.masked for place in range(*span)}
            assert held.isdisjoint(set(range(before, screen.decided)) - masked)
        assert whole.text.startswith("".join(stream(chosen, text, cuts)[0][:-1]))


@settings(deadline=None, max_examples=80)
@given(TEXTS, CUTS)
def test_personal_data_is_masked_as_in_the_corpus(text: str, cuts: list[int]) -> None:
    wanted = mask(text, list(FINDERS), MASKS)[0]
    assert check(PERSONAL, text, "output").text == wanted
    assert "".join(stream(PERSONAL, text, cuts)[0]) == wanted


def test_words_come_as_soon_as_they_are_known_to_be_harmless() -> None:
    chosen = policy(without=("code",))
    shown, _ = stream(chosen, "One two, three: 12 of them.", [1] * 100)
    assert [place for place, piece in enumerate(shown) if piece] == [4, 9, 16, 19, 22, 27]
    assert "".join(shown[:5]) == "One "


def test_numbers_on_one_line_are_not_held_for_ever() -> None:
    screen = TextScreen(PERSONAL, "output")
    shown = "".join(screen.feed("1 2 3 ") for _ in range(1000))
    assert len(shown) > 1000 and len(screen._window.text) < 12000
    assert (shown + screen.feed("", final=True)) == "1 2 3 " * 1000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("my K\u00edLL now", "my # now"),
        ("skills and kills", "skills and kills"),
        ("k\u00ad1\u200bl|!", "#!"),
        ("kill\n\t yourself.", "#."),
        ("self harm, self_harm", "#, #"),
        ("\u041aill \uff4b\uff49\uff4c\uff4c", "# #"),
        ("foo1 bar foo2", "[removed] [removed] foo2"),
    ],
)
def test_disguises_are_seen_through(text: str, shown: str) -> None:
    assert check(ALL, text, "output").text == shown
