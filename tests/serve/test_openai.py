"""OpenAI's own Python client, unchanged, gets what the decoding engine writes."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from megalm.generate.request import GenerationOptions
from megalm.serve.api.logprobs import token_text
from megalm.testing import run_distributed
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.chat import load_chat_template
from tests.serve.servers import Server

pytestmark = pytest.mark.timeout(300)
PROMPT = "the end of the hand"


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.api, api_key="none is needed", max_retries=0)


def write(run: str, prompts: list[list[int]], options: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """What the engine itself writes; to be called in a world."""
    from megalm.generate.decode import Generator, context_length
    from megalm.generate.load import open_model
    from megalm.generate.request import ModelRequest

    engine, config, tokenizer = open_model(ModelRequest(checkpoint=run), "gpt")
    generator = Generator(engine.chunks, engine.layout, context_length(config), tokenizer)
    done = [text for prompt in prompts for text in generator.generate([prompt], GenerationOptions(**options))]
    return [(text.text, text.finish_reason, text.logprobs) for text in done]


def expected(run: Path, *prompts: list[int], **options: Any) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = run_distributed(write, 1, str(run), list(prompts), options)[0]
    return found


def test_models_are_listed(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "tiny" and model.owned_by == "megalm"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        client.models.retrieve("other")


def test_completions_are_the_engines(client: openai.OpenAI, run: Path) -> None:
    ids = load_tokenizer(run / "tokenizer").encode(PROMPT)
    settings: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5, "n": 2}
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, logprobs=2, **settings, extra_body={"top_k": 20}
    )
    wanted = expected(run, ids, max_new_tokens=12, logprobs=2, top_k=20, **settings)
    assert [choice.text for choice in found.choices] == [text for text, _, _ in wanted]
    assert [choice.finish_reason for choice in found.choices] == [reason for _, reason, _ in wanted]
    for choice, (text, _, logprobs) in zip(found.choices, wanted, strict=True):
        assert choice.logprobs.token_logprobs == pytest.approx(logprobs, abs=1e-5)
        assert len(choice.logprobs.tokens) == len(choice.logprobs.top_logprobs) == len(logprobs)
        if choice.finish_reason == "length" and "\ufffd" not in text:
            assert "".join(choice.logprobs.tokens) == text
    assert found.usage.prompt_tokens == len(ids)
    assert found.usage.completion_tokens == sum(len(logprobs) for _, _, logprobs in wanted)


def test_several_prompts_as_text_or_ids_keep_their_order(client: openai.OpenAI, run: Path) -> None:
    tokenizer = load_tokenizer(run / "tokenizer")
    prompts = ["the end", "of the hand", "question"]
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    wanted = [text for text, _, _ in expected(run, *ids, max_new_tokens=6, greedy=True)]
    for given in (prompts, ids):
        found = client.completions.create(
            model="tiny", prompt=given, max_tokens=6, temperature=0, echo=given is prompts
        )
        heads = prompts if given is prompts else [""] * 3
        assert [choice.text for choice in found.choices] == [
            a + b for a, b in zip(heads, wanted, strict=True)
        ]
    alone = client.completions.create(model="tiny", prompt=ids[1], max_tokens=6, temperature=0)
    assert alone.choices[0].text == wanted[1]


def test_log_probabilities_of_prompts_are_told(client: openai.OpenAI, run: Path) -> None:
    """A prompt of what was written before has the log-probabilities that it was written with; a whole context can be read."""
    tokenizer = load_tokenizer(run / "tokenizer")
    names = {token_text(number, tokenizer): number for number in range(tokenizer.vocab_size)}
    prompts = [tokenizer.encode(text) for text in ("the end", "of the hand and the hand")]
    settings: dict[str, Any] = {"model": "tiny", "temperature": 0, "logprobs": 2, "echo": True}
    written = client.completions.create(prompt=prompts, max_tokens=5, n=2, **settings)
    for prompt, (first, second) in zip(
        prompts, zip(written.choices[::2], written.choices[1::2], strict=True), strict=True
    ):
        assert first.text == second.text and first.logprobs == second.logprobs
        told = first.logprobs
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert all(len(top) == 2 for top in told.top_logprobs[1:])
        assert "".join(told.tokens[: len(prompt)]) == tokenizer.decode(prompt)
        whole = [names[token] for token in told.tokens]
        assert whole[: len(prompt)] == prompt
        (again,) = client.completions.create(prompt=[whole], max_tokens=0, **settings).choices
        assert again.text == tokenizer.decode(whole) and again.finish_reason == "length"
        assert again.logprobs.tokens == told.tokens
        assert again.logprobs.token_logprobs[1:] == pytest.approx(told.token_logprobs[1:], abs=1e-5)
        assert again.logprobs.text_offset[0] == 0
    (full,) = client.completions.create(prompt=[whole[:1] * 65], max_tokens=0, **settings).choices
    assert len(full.logprobs.token_logprobs) == 65
    with pytest.raises(openai.BadRequestError, match="it may have 65"):
        client.completions.create(prompt=[whole[:1] * 66], max_tokens=0, **settings)


def test_a_conversation_is_answered_in_the_models_template(client: openai.OpenAI, run: Path) -> None:
    tokenizer = load_tokenizer(run / "tokenizer")
    template = load_chat_template("plain", tokenizer, config=run / "tokenizer")
    messages: list[Any] = [{"role": "system", "content": "the"}, {"role": "user", "content": "end?"}]
    ids = template.encode(messages, add_generation_prompt=True).ids
    [(text, reason, logprobs)] = expected(
        run, ids, max_new_tokens=10, seed=3, stop=[*template.end_of_turn()], logprobs=0
    )
    found = client.chat.completions.create(
        model="tiny", messages=messages, max_completion_tokens=10, seed=3, logprobs=True, top_logprobs=3
    )
    [choice] = found.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, reason)
    assert [token.logprob for token in choice.logprobs.content] == pytest.approx(logprobs, abs=1e-5)
    assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)
    assert found.usage.prompt_tokens == len(ids)
    parts = [{"type": "text", "text": "en"}, {"type": "text", "text": "d?"}]
    again = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "developer", "content": "the"}, {"role": "user", "content": parts}],
        max_tokens=10,
        seed=3,
    )
    assert again.choices[0].message.content == text


def test_streams_join_to_the_same_answers(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "tiny", "seed": 11, "n": 2, "max_tokens": 12}
    messages: list[Any] = [{"role": "user", "content": "how many hands"}]
    whole = client.chat.completions.create(messages=messages, logprobs=True, **settings)
    texts, reasons, tokens = ["", ""], [None, None], [[], []]
    usage = None
    for part in client.chat.completions.create(
        messages=messages, stream=True, logprobs=True, stream_options={"include_usage": True}, **settings
    ):
        usage = part.usage or usage
        for choice in part.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            tokens[choice.index] += [
                one.logprob for one in (choice.logprobs.content if choice.logprobs else [])
            ]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert tokens == [[one.logprob for one in choice.logprobs.content] for choice in whole.choices]
    assert usage == whole.usage
    lines = list(client.completions.create(prompt=PROMPT, stream=True, echo=True, **settings))
    plain = client.completions.create(prompt=PROMPT, echo=True, **settings)
    joined = ["".join(c.text for part in lines for c in part.choices if c.index == n) for n in range(2)]
    assert joined == [choice.text for choice in plain.choices]


def test_many_at_once_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        done = client.completions.create(
            model="tiny",
            prompt=f"question {number} of the hand",
            max_tokens=4 + number,
            seed=number,
            stop=["q"] if number % 3 else None,
        )
        return done.choices[0].text

    alone = [ask(number) for number in range(20)]
    with ThreadPoolExecutor(20) as threads:
        assert list(threads.map(ask, range(20))) == alone


def test_stop_strings_are_not_shown_and_a_seed_repeats(client: openai.OpenAI) -> None:
    def ask(**changes: Any) -> Any:
        return client.completions.create(model="tiny", prompt=PROMPT, max_tokens=30, **changes).choices[0]

    text = ask(seed=1).text
    assert ask(seed=1).text == text and ask(seed=2).text != text
    stop = text[5:8]
    stopped = ask(seed=1, stop=stop)
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")
    assert len({ask().text for _ in range(4)}) > 1  # without a seed each is another


def test_equal_prompts_of_one_request_are_drawn_apart(client: openai.OpenAI) -> None:
    for seed in (None, 3):
        asked = {"model": "tiny", "prompt": [PROMPT] * 4, "max_tokens": 20, "seed": seed}
        texts = [choice.text for choice in client.completions.create(**asked).choices]
        assert len(set(texts)) == 4
        again = [choice.text for choice in client.completions.create(**asked).choices]
        assert (again == texts) == (seed is not None)


def test_an_answers_message_goes_back_as_it_came(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "how"}]
    done = client.chat.completions.create(model="tiny", messages=messages, max_tokens=3, n=None, seed=1)
    messages += [done.choices[0].message, {"role": "user", "content": "and"}]
    plain = [
        one if isinstance(one, dict) else {"role": "assistant", "content": one.content} for one in messages
    ]
    [one, other] = (
        client.chat.completions.create(model="tiny", messages=given, max_tokens=3, seed=1)
        for given in (messages, plain)
    )
    assert one.choices == other.choices and one.usage == other.usage


def test_a_token_of_no_probability_does_not_come(client: openai.OpenAI, run: Path) -> None:
    tokenizer = load_tokenizer(run / "tokenizer")
    first = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, temperature=0, logprobs=1)
    token = next(iter(first.choices[0].logprobs.top_logprobs[0]))
    ids = [
        number for number in range(tokenizer.vocab_size) if tokenizer.token_bytes(number) == token.encode()
    ]
    other = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=1,
        temperature=0,
        logprobs=1,
        logit_bias={str(number): -100 for number in ids},
    )
    assert other.choices[0].logprobs.tokens[0] != token
    assert math.isfinite(other.choices[0].logprobs.token_logprobs[0])
