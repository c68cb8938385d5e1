"""Prompt sets: what is read, left out and named; and streams: epochs, shares, the same prompt at a position every time."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megalm.config.prompts import PromptSource
from megalm.errors import UserError
from megalm.rlhf.prompts import PromptSet, PromptStream, PromptWriter
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.chat import load_chat_template
from tests.chats import make_tokenizer

FIELD = "rlhf.prompts"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def text_writer(tokenizer: Any, most: int = 100) -> PromptWriter:
    return PromptWriter(tokenizer, None, as_text=True, max_tokens=most)


def write(path: Path, records: list[Any]) -> PromptSource:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return PromptSource(path=str(path))


def numbered(path: Path, count: int, name: str) -> PromptSource:
    return write(path, [{"prompt": f"{name} {number}", "answer": number} for number in range(count)])


def test_records_keep_what_rewards_read_and_texts_are_encoded(tokenizer, tmp_path):
    source = write(tmp_path / "p.jsonl", [{"prompt": "1 and 2", "answer": 3}, "plain", {"question": "who"}])
    prompts = PromptSet([source], FIELD, text_writer(tokenizer))
    assert [prompt.text for prompt in prompts] == ["1 and 2", "plain", "who"]
    assert prompts[0].record == {"prompt": "1 and 2", "answer": 3} and prompts[1].record == {
        "prompt": "plain"
    }
    for number, prompt in enumerate(prompts):
        assert prompt.tokens == tokenizer.encode(prompt.text) and prompt.number == number
    assert prompts[-1].where == f"{FIELD} {tmp_path / 'p.jsonl'} line 3"
    assert prompts.notices() == [] and prompts[1:] == [prompts[1], prompts[2]]


def test_conversations_are_written_up_to_where_the_assistant_begins(tokenizer, tmp_path):
    template = load_chat_template("chatml", tokenizer)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "who"}]
    records = [
        {"messages": messages},
        {"messages": [*messages[1:], {"role": "assistant", "content": "me"}]},
        {"prompt": "where"},
        {"prompt": messages},
    ]
    writer = PromptWriter(tokenizer, template, as_text=False, max_tokens=200)
    prompts = PromptSet([write(tmp_path / "p.jsonl", records)], FIELD, writer)
    asked = [messages, messages[1:], [{"role": "user", "content": "where"}]]
    expected = [template.encode(one, add_generation_prompt=True) for one in asked]
    assert [prompt.tokens for prompt in prompts] == [encoded.ids for encoded in expected]
    assert [prompt.text for prompt in prompts] == [encoded.text for encoded in expected]
    assert "1 copy of another" in prompts.notices()[0]


def test_what_is_left_out_is_counted_and_the_first_is_named(tokenizer, tmp_path):
    path = tmp_path / "p.jsonl"
    source = write(path, ["one", "", "one", " ", "a " * 50, {"prompt": "one", "answer": 2}, "two"])
    prompts = PromptSet([source], FIELD, text_writer(tokenizer, most=20))
    assert [prompt.text for prompt in prompts] == ["one", "two"]
    assert prompts.notices() == [
        f"{FIELD}: 5 of 7 prompts left out: 2 empty (first: {path} line 2), 2 copy of another (first: {path} line 3), "
        f"1 longer than 20 tokens (first: {path} line 5)"
    ]


def test_a_prompt_as_long_as_the_limit_is_taken_and_one_token_more_is_not(tokenizer, tmp_path):
    source = write(tmp_path / "p.jsonl", [{"prompt": "1 and 2"}, {"prompt": "1"}])
    length = len(tokenizer.encode("1 and 2"))
    assert length > 1
    taken = [len(PromptSet([source], FIELD, text_writer(tokenizer, most))) for most in (length, length - 1)]
    assert taken == [2, 1]


def test_copies_across_files_count_once_and_held_out_ones_are_found(tokenizer, tmp_path):
    one, two = write(tmp_path / "1.jsonl", ["a", "b"]), write(tmp_path / "2.jsonl", ["b", "c"])
    both = PromptSet([one, two], FIELD, text_writer(tokenizer))
    assert [prompt.text for prompt in both] == ["a", "b", "c"] and both.counts == [2, 1]
    held_out = PromptSet(
        [write(tmp_path / "3.jsonl", ["d", "c"])], "rlhf.eval_prompts", text_writer(tokenizer)
    )
    assert [prompt.text for prompt in held_out.shared_with(both)] == ["c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{oops\n", r"rlhf\.prompts .* line 1 is no JSON"),
        ('\n{"text": "x"}\n', r"line 2: no text under `prompt` and no list under `messages` \(keys text\)"),
        ("[1]\n", "line 1: a text or an object is expected, found list"),
        ('{"messages": [{"role": "user"}]}\n', "is no message"),
        ('{"messages": [{"role": "user", "content": "x"}]}\n', "there is no chat template: name one in rlhf"),
        ("", "has no prompt that can be used; name a file"),
        ('""\n', "has no prompt that can be used: 1 empty"),
    ],
)
def test_mistakes_are_told_with_file_and_line(tokenizer, tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        PromptSet([PromptSource(path=str(tmp_path / "p.jsonl"))], FIELD, text_writer(tokenizer))


def test_a_missing_file_is_told_and_a_compressed_one_is_read(tokenizer, tmp_path):
    with pytest.raises(UserError, match="No such file or directory; name a JSONL file"):
        PromptSet([PromptSource(path=str(tmp_path / "none"))], FIELD, text_writer(tokenizer))
    with gzip.open(tmp_path / "p.jsonl.gz", "wb") as file:
        file.write(b'"a"\n"b"')
    source = PromptSource(path=str(tmp_path / "p.jsonl.gz"))
    assert len(PromptSet([source], FIELD, text_writer(tokenizer))) == 2


def test_an_epoch_takes_each_prompt_once_and_the_next_has_another_order(tokenizer, tmp_path):
    prompts = PromptSet([numbered(tmp_path / "p.jsonl", 50, "x")], FIELD, text_writer(tokenizer))
    stream = PromptStream(prompts, [1.0], seed=3)
    first, second = ([p.number for p in stream.batch(range(e * 50, e * 50 + 50))] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second and first != list(range(50))


def test_files_come_by_their_weights(tokenizer, tmp_path):
    sources = [numbered(tmp_path / "a.jsonl", 30, "a"), numbered(tmp_path / "b.jsonl", 7, "b")]
    prompts = PromptSet(sources, FIELD, text_writer(tokenizer))
    taken = PromptStream(prompts, [3.0, 1.0], seed=0).batch(range(4096))
    assert Counter(prompt.text[0] for prompt in taken) == {"a": 3072, "b": 1024}
    of_b = [prompt.number for prompt in taken if prompt.text[0] == "b"]
    assert sorted(of_b[:7]) == sorted(of_b[7:14]) == list(range(30, 37))


def test_a_batch_depends_on_data_seed_and_position_alone(tokenizer, tmp_path):
    source = numbered(tmp_path / "p.jsonl", 40, "x")
    prompts = PromptSet([source], FIELD, text_writer(tokenizer))
    whole = PromptStream(prompts, [1.0], seed=5).batch(range(100))
    again = PromptStream(PromptSet([source], FIELD, text_writer(tokenizer)), [2.0], seed=5)
    order = np.random.default_rng(0).permutation(100)
    assert again.batch(order) == [whole[position] for position in order]
    other = PromptStream(prompts, [1.0], seed=6).batch(range(100))
    assert other != whole
