"""Every common shape of instruction data becomes the same messages; what cannot be learned from is named by its reason."""

import gzip
import json

import pytest

from megalm.errors import UserError
from megalm.tokenizer.conversations import BadRecord, ChatShape, conversation_of
from megalm.tokenizer.records import Broken, read_records

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
USER, ASSISTANT = TURNS
SHAPES = {
    "messages": {"messages": TURNS},
    "parts": {"messages": [{"role": "User", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "gpteacher": {"instruction": "Hi", "response": "Hello"},
    "prompt": {"prompt": "Hi", "completion": "Hello"},
    "response": {"prompt": "Hi", "response": "Hello"},
    "question": {"question": "Hi", "answer": "Hello"},
    "lists": {"prompt": [USER], "completion": [ASSISTANT]},
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_recognised(name):
    assert conversation_of(SHAPES[name], ChatShape()).messages == TURNS


def test_shapes_are_chosen_by_name_and_keys():
    both = {"messages": TURNS, "instruction": "Hi", "output": "Yo", "q": "Hi", "a": "Ho", "chat": TURNS[::-1]}
    for shape, answer in (
        (ChatShape(), "Hello"),
        (ChatShape("alpaca"), "Yo"),
        (ChatShape(prompt_key="q", answer_key="a"), "Ho"),
        (ChatShape("prompt", prompt_key="q", answer_key="a"), "Ho"),
        (ChatShape("sharegpt", messages_key="messages"), "Hello"),
    ):
        assert conversation_of(both, shape).messages[-1]["content"] == answer
    with pytest.raises(BadRecord, match="turn_order: message 1 of assistant comes after the beginning"):
        conversation_of(both, ChatShape(messages_key="chat"))
    for wrong in (
        {"format": "csv"},
        {"format": "alpaca", "messages_key": "m"},
        {"format": "sharegpt", "prompt_key": "p"},
        {"format": "prompt", "messages_key": "m"},
        {"messages_key": "m", "answer_key": "a"},
    ):
        with pytest.raises(UserError):
            ChatShape(**wrong)


def test_alpaca_has_an_input_a_history_and_a_system_text():
    record = {
        "instruction": "Add",
        "input": "1, 2",
        "output": "3",
        "history": [["Hi", "Hello"]],
        "system": "Be kind.",
    }
    assert conversation_of(record, ChatShape(system="unused")).messages == [
        {"role": "system", "content": "Be kind."},
        *TURNS,
        {"role": "user", "content": "Add\n\n1, 2"},
        {"role": "assistant", "content": "3"},
    ]


def test_a_system_text_is_given_to_conversations_without_one_and_an_empty_one_goes():
    shape = ChatShape(system="Be kind.")
    assert conversation_of({"messages": TURNS}, shape).messages[0] == {
        "role": "system",
        "content": "Be kind.",
    }
    own = [{"role": "system", "content": "Own"}, *TURNS]
    assert conversation_of({"messages": own}, shape).messages == own
    assert (
        conversation_of({"messages": [{"role": "system", "content": " "}, *TURNS]}, ChatShape()).messages
        == TURNS
    )


def test_calls_of_tools_are_read_from_both_conventions():
    call = {"name": "add", "arguments": {"a": 1}}
    record = {
        "conversations": [
            {"from": "human", "value": "1?"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "One"},
        ],
        "tools": json.dumps([{"name": "add"}]),
    }
    found = conversation_of(record, ChatShape())
    assert found.tools == [{"name": "add"}]
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    calls = found.messages[1]["tool_calls"]
    assert calls == [{"type": "function", "function": call}]
    openai = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}]}
    assert conversation_of(openai, ChatShape()).messages[1]["tool_calls"] == calls


SYSTEM = {"role": "system", "content": "Be kind."}
BAD = {
    "a list": ([1], "missing_field", "a list in place of an object"),
    "no shape": ({"text": "x"}, "missing_field", "no known shape (found keys text)"),
    "no output": ({"instruction": "x", "input": ""}, "missing_field", "no known shape"),
    "null output": ({"instruction": "x", "output": None}, "missing_field", "nothing under 'output'"),
    "no role": (
        {"messages": [{"content": "x"}]},
        "missing_field",
        "message 1 has no role (found keys content)",
    ),
    "no content": ({"messages": [USER, {"role": "assistant"}]}, "missing_field", "message 2 has no text"),
    "no messages": ({"messages": []}, "missing_field", "an empty list of messages"),
    "messages are none": ({"messages": "x"}, "missing_field", "a text in place of a list under 'messages'"),
    "number": ({"prompt": "x", "completion": 5}, "not_text", "a number under 'completion'"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, ASSISTANT]},
        "not_text",
        "message 1 holds a list that is no text",
    ),
    "empty answer": ({"instruction": "x", "output": " \n"}, "empty_answer", "message 2 is empty"),
    "empty question": ({"prompt": "", "completion": "x"}, "empty_question", "message 1 is empty"),
    "role": ({"messages": [{"role": "cat", "content": "x"}]}, "unknown_role", "message 1 is of 'cat'"),
    "weight": (
        {"messages": [USER, {**ASSISTANT, "weight": "0"}]},
        "unknown_weight",
        "message 2 has weight '0', not 0 or 1",
    ),
    "twice": ({"messages": [USER, USER, ASSISTANT]}, "turn_order", "message 2 of user comes after user"),
    "late system": (
        {"messages": [*TURNS, SYSTEM]},
        "turn_order",
        "message 3 of system comes after assistant",
    ),
    "stray tool": ({"messages": [USER, {"role": "tool", "content": "x"}]}, "turn_order", "message 2 of tool"),
    "unanswered": ({"messages": [*TURNS, USER]}, "no_answer", "the last message is of user"),
    "system alone": ({"messages": [SYSTEM]}, "no_answer", "the last message is of the system"),
    "broken tools": ({"messages": TURNS, "tools": "[{"}, "not_text", "'tools' is a text that is no JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_learned_from_is_named_by_its_reason(name):
    record, reason, detail = BAD[name]
    with pytest.raises(BadRecord) as caught:
        conversation_of(record, ChatShape())
    assert caught.value.reason == reason and detail in caught.value.detail


def test_records_of_arrays_and_lines_are_found_at_their_places(tmp_path):
    text = '[\n {"a": "é"},\n {"a":\n "\\ud800"}, 7\n]\n'
    (tmp_path / "a.json").write_text(text, "utf-8")
    found = list(read_records(tmp_path / "a.json"))
    assert [(record.line, text.encode()[record.offset :][:1]) for record in found] == [
        (2, b"{"),
        (3, b"{"),
        (4, b"7"),
    ]
    assert found[0].value == {"a": "é"} and isinstance(found[1].value, Broken)
    lines = b'\xef\xbb\xbf{"a": 1}\n\n{"a": NaN}\n{"a": \n{"a": "\xff"}\n[2]'
    for path in (tmp_path / "a.jsonl.gz", tmp_path / "b.json.gz"):
        path.write_bytes(gzip.compress(lines))
        found = list(read_records(path))
        assert [record.line for record in found] == [1, 3, 4, 5, 6]
        assert [isinstance(record.value, Broken) for record in found] == [False, False, True, True, False]
        assert [lines[record.offset :][:1] for record in found[1:]] == [b"{", b"{", b"{", b"["]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1},\n {"a": 2}', "line 2: a comma or the array's end is missing"),
        ('[{"a": 1},\n {"a" 2}]', "line 2: the array is no JSON"),
        ("[1] 2", "goes on after its array"),
    ],
)
def test_an_array_that_cannot_be_read_to_its_end_is_refused(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=said):
        list(read_records(tmp_path / "a.json"))
