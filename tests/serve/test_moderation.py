"""A server with a policy: what is blocked, masked and told, for chats, completions, streams and vectors."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.serve.servers import Server, serving, until

pytestmark = pytest.mark.timeout(300)
LENGTH = 40
PROMPT = "the end of the hand"
HELP = "Please talk to somebody."
SAID: list[Any] = [{"role": "user", "content": "the hand"}]
Messages = list[Any]


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.api, api_key="none is needed", max_retries=0)


def complete(server: Server, seed: int, **more: Any) -> Any:
    return client_of(server).completions.create(
        model="tiny", prompt=PROMPT, max_tokens=LENGTH, seed=seed, **more
    )


@pytest.fixture(scope="module")
def texts(server: Server) -> list[str]:
    """What the model writes to PROMPT with the seeds 0 to 3, where nothing is checked."""
    return [complete(server, seed).choices[0].text for seed in range(4)]


@pytest.fixture(scope="module")
def parts(texts: list[str]) -> tuple[str, str]:
    """A piece of the first text, and one of the second, that stand once and not in the others."""
    return texts[0][5:13], texts[1][15:22]


@pytest.fixture(scope="module")
def answer(server: Server) -> str:
    """What the model answers to SAID, where nothing is checked."""
    found: str = ask(server, SAID, max_tokens=30).choices[0].message.content
    return found


@pytest.fixture(scope="module")
def checked(
    run: Path, parts: tuple[str, str], answer: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Path]]:
    """A server whose policy blocks and masks those pieces, and the file of its audit log."""
    folder = tmp_path_factory.mktemp("checked")
    blocked, masked, said = (
        {"pattern": re.escape(part), "ignore_case": False, "window": 12} for part in (*parts, answer[8:20])
    )
    categories = {
        "violence": {"output": "block", "rules": [blocked]},
        "rude": {"output": "block", "rules": [said], "refusal": "No."},
        "odd": {"output": "mask", "rules": [masked]},
        "self-harm": {"input": "block", "words": ["want to die"], "refusal": HELP},
        "personal": {"input": "mask", "pii": ["email"]},
        "mild": {"input": "flag", "words": ["darn"]},
    }
    (folder / "policy.yaml").write_text(yaml.safe_dump({"name": "strict", "categories": categories}))
    model = {"checkpoint": str(run), "name": "tiny", "chat_template": "plain", "max_rows": 8}
    log = folder / "audit.jsonl"
    settings = {"moderation": str(folder / "policy.yaml"), "moderation_log": str(log)}
    settings["feedback"] = f"sqlite:///{folder}/feedback.db"
    with serving(folder, models=[model], **settings) as found:
        yield found, log


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def streamed(server: Server, seed: int, **more: Any) -> tuple[list[str], str | None, list[str]]:
    """The pieces, why the text ended, and the tokens of which log-probabilities were told."""
    pieces, reason, tokens = [], None, list[str]()
    for part in complete(server, seed, stream=True, **more):
        for choice in part.choices:
            pieces.append(choice.text)
            reason = choice.finish_reason or reason
            tokens += choice.logprobs.tokens if choice.logprobs else []
    return pieces, reason, tokens


def test_texts_without_findings_are_the_models(checked: tuple[Server, Path], texts: list[str]) -> None:
    server, _ = checked
    for seed in (2, 3):
        assert complete(server, seed).choices[0].text == texts[seed]
        whole = complete(server, seed, logprobs=2).choices[0].logprobs.tokens
        pieces, _, tokens = streamed(server, seed, logprobs=2)
        assert "".join(pieces) == texts[seed] and tokens == whole and len(tokens) == LENGTH


def test_a_blocked_output_ends_before_it_and_the_model_stops(
    checked: tuple[Server, Path], server: Server, texts: list[str], parts: tuple[str, str]
) -> None:
    plain, (server, log) = server, checked
    before, shown = len(lines_of(log)), texts[0][: texts[0].index(parts[0])]
    found = complete(server, 0, logprobs=0)
    [choice] = found.choices
    assert (choice.text, choice.finish_reason) == (shown, "content_filter")
    assert 0 < found.usage.completion_tokens < LENGTH
    every = complete(plain, 0, logprobs=0).choices[0].logprobs.tokens
    assert choice.logprobs.tokens == every[: len(choice.logprobs.tokens)] and len(choice.logprobs.tokens) < 30
    pieces, reason, tokens = streamed(server, 0, logprobs=0)
    assert ("".join(pieces), reason, tokens) == (shown, "content_filter", choice.logprobs.tokens)
    until(lambda: server.metric("megalm_open_texts") == 0)
    assert server.metric("megalm_moderated_total", category="violence", side="output", action="block") == 2
    for line in lines_of(log)[before:]:
        assert (line["side"], line["action"], line["categories"]) == ("output", "block", {"violence": 1.0})
        assert line["client"] == "anyone" and len(line["request"]) == 32
    assert parts[0] not in log.read_text()


def test_a_masked_output_goes_on_and_its_tokens_are_not_told(
    checked: tuple[Server, Path], texts: list[str], parts: tuple[str, str]
) -> None:
    server, log = checked
    wanted = texts[1].replace(parts[1], "[removed]")
    [choice] = complete(server, 1, logprobs=0).choices
    assert (choice.text, choice.finish_reason) == (wanted, "length")
    pieces, reason, tokens = streamed(server, 1, logprobs=0)
    assert ("".join(pieces), reason, tokens) == (wanted, "length", choice.logprobs.tokens)
    assert parts[1] not in "".join(tokens) and tokens
    digest = hashlib.sha256(texts[1].encode()).hexdigest()
    assert lines_of(log)[-1]["sha256"] == digest


def test_one_of_several_texts_is_blocked_and_the_others_go_on(
    checked: tuple[Server, Path], server: Server, parts: tuple[str, str]
) -> None:
    plain = [complete(server, seed, n=3).choices for seed in range(2)]
    for seed in range(2):
        for mine, other in zip(complete(checked[0], seed, n=3).choices, plain[seed], strict=True):
            blocked = other.text.find(parts[0])
            wanted = (other.text if blocked < 0 else other.text[:blocked]).replace(parts[1], "[removed]")
            assert mine.text == wanted


def ask(server: Server, messages: Messages, **more: Any) -> Any:
    settings = {"max_tokens": 4, "seed": 5} | more
    return client_of(server).chat.completions.create(model="tiny", messages=messages, **settings)


def test_a_blocked_answer_ends_with_the_refusal(checked: tuple[Server, Path], answer: str) -> None:
    wanted = answer[: answer.index(answer[8:20])]
    [choice] = ask(checked[0], SAID, max_tokens=30).choices
    assert (choice.message.content, choice.message.refusal) == (wanted, "No.")
    assert choice.finish_reason == "content_filter"
    parts = [part.choices[0] for part in ask(checked[0], SAID, max_tokens=30, stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == wanted
    assert (parts[-1].delta.refusal, parts[-1].finish_reason) == ("No.", "content_filter")


def test_a_blocked_question_is_answered_politely_and_the_model_is_not_asked(
    checked: tuple[Server, Path],
) -> None:
    server, log = checked
    question: Messages = [{"role": "user", "content": "I w\u00e4nt to  DIE"}]
    before = server.metric("megalm_tokens_total")
    [choice] = ask(server, question).choices
    assert choice.message.content == choice.message.refusal == HELP
    assert choice.finish_reason == "content_filter"
    parts = list(ask(server, question, stream=True, stream_options={"include_usage": True}))
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None, "content_filter"]
    assert parts[0].choices[0].delta.content == parts[0].choices[0].delta.refusal == HELP
    assert parts[-1].usage.completion_tokens == 0
    for prompt in ("want to die", ["the end", "want to die"]):
        with pytest.raises(openai.BadRequestError, match=HELP) as told:
            client_of(server).completions.create(model="tiny", prompt=prompt)
        assert told.value.code == "content_filter"
    assert server.metric("megalm_tokens_total") == before
    assert server.metric("megalm_moderated_total", category="self-harm", action="block") == 4
    assert lines_of(log)[-1]["categories"] == {"self-harm": 1.0} and "die" not in log.read_text()


def test_the_model_sees_masked_questions_and_none_that_were_blocked(
    checked: tuple[Server, Path], server: Server
) -> None:
    def talk(first: str, last: str) -> Messages:
        return [{"role": "user", "content": first}, {"role": "user", "content": last}]

    given, seen = talk("want to die", "a@b.io"), talk("[removed]", "<EMAIL>")
    mine, wanted = ask(checked[0], given), ask(server, seen)
    assert mine.choices[0].message.content == wanted.choices[0].message.content
    assert mine.usage == wanted.usage
    prompts = ["the <EMAIL>", "the end"]
    plain = client_of(server).completions.create(
        model="tiny", prompt=prompts, max_tokens=6, seed=1, echo=True
    )
    echoed = client_of(checked[0]).completions.create(
        model="tiny", prompt=["the ann@example.com", "the end"], max_tokens=6, seed=1, echo=True
    )
    assert [one.text for one in echoed.choices] == [one.text for one in plain.choices]


def test_what_is_kept_is_what_was_seen_and_shown(checked: tuple[Server, Path], answer: str) -> None:
    server, _ = checked
    for stream in (False, True):
        told = {"conversation": f"c{stream}"}
        reply = ask(server, SAID, max_tokens=30, stream=stream, store=True, metadata=told)
        assert not stream or list(reply)
        ask(server, [{"role": "user", "content": "a@b.io"}], store=True, metadata=told)
        ask(server, [{"role": "user", "content": "want to die"}], store=True, metadata=told)
        with server.client() as client:
            kept = client.get(f"/v1/feedback/conversations/c{stream}").json()["exchanges"]
        assert [one["messages"][0]["content"] for one in kept] == ["the hand", "<EMAIL>"]
        assert kept[0]["choices"][0]["content"] == answer[: answer.index(answer[8:20])]
        assert kept[0]["choices"][0]["finish_reason"] == "content_filter"


def test_moderations_are_openais(checked: tuple[Server, Path], server: Server) -> None:
    client = client_of(checked[0])
    found = client.moderations.create(input=["the end", "I want to die, ann@example.com"])
    assert found.model == "strict" and [one.flagged for one in found.results] == [False, True]
    _, second = found.results
    assert second.categories.self_harm and second.category_scores.self_harm == 1.0
    assert not second.categories.sexual_minors and second.category_scores.hate == 0.0
    assert second.categories.model_dump()["personal"] is True
    assert client.moderations.create(input="darn", model="omni-moderation-latest").results[0].flagged
    parts: Any = [{"type": "text", "text": "want to die"}]
    assert client.moderations.create(input=parts).results[0].categories.self_harm
    with pytest.raises(openai.BadRequestError, match="0 texts"):
        client.moderations.create(input=[])
    with pytest.raises(openai.BadRequestError, match="at most 200000"):
        client.moderations.create(input="a " * 150_000)
    with pytest.raises(openai.NotFoundError, match="no policy"):
        client_of(server).moderations.create(input="a")


def test_a_log_that_cannot_be_written_is_told_at_the_start(
    tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from megalm.cli import main

    (tmp_path / "policy.yaml").write_text("categories: {a: {input: flag, words: [b]}}", encoding="utf-8")
    for arguments, told in (
        (["--moderation", str(tmp_path / "absent.yaml")], "absent.yaml"),
        (["--moderation-log", str(tmp_path / "log")], "give --moderation FILE"),
        (["--moderation", str(tmp_path / "policy.yaml"), "--moderation-log", str(tmp_path)], "audit log"),
    ):
        assert main(["serve", str(run), "--port", "0", *arguments]) == 2
        assert told in capfd.readouterr().err
