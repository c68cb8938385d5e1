"""Chat templates: ids and masks equal to Hugging Face's, where templates are found, and plain errors."""

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.chat import BUNDLED, bundled_templates, load_chat_template
from megalm.tokenizer.load import tokenizer_files
from tests.tokenizer.small_tokenizers import KINDS, made, save, trained_text

CHATS = {
    "question": [{"role": "user", "content": "What is the capital of France?"}],
    "exchange": [
        {"role": "user", "content": "  What is 東京?\n"},
        {"role": "assistant", "content": "A city, of course. 😀"},
    ],
    "system and parts": [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Write a "}, {"type": "text", "text": "poem."}],
        },
        {"role": "assistant", "content": "The sea\nis wide."},
        {"role": "user", "content": "<b>Thanks</b> & more: {{ x }}"},
        {"role": "assistant", "content": "Blue. "},
    ],
}
CHATML = (BUNDLED / "chatml.jinja").read_text()
UNMARKED = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module")
def tokenizer(saved):
    return load_tokenizer(saved["byte-level"])


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", bundled_templates())
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_masks_of_bundled_templates_equal_those_of_transformers(saved, kind, name, chat, prompt):
    reference = AutoTokenizer.from_pretrained(saved[kind])
    expected = reference.apply_chat_template(
        CHATS[chat],
        chat_template=(BUNDLED / f"{name}.jinja").read_text(),
        add_generation_prompt=prompt,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    template = load_chat_template(name, load_tokenizer(saved[kind]), config=saved[kind])
    found = template.encode(CHATS[chat], add_generation_prompt=prompt)
    assert found.ids == expected["input_ids"]
    if kind == "wordpiece" and name in ("llama-2", "plain"):
        # the block begins with a space, which is no token here: transformers then gives up on all of them
        assert not any(expected["assistant_masks"])
    else:
        assert found.loss_mask == expected["assistant_masks"]
    assert any(found.loss_mask) == (chat != "question")


TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "of <a> place", "parameters": {"type": "object"}},
    }
]
CALLS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "How warm is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"place": 'Par"is'}}},
            {"type": "function", "function": {"name": "weather", "arguments": '{"place": "Rome"}'}},
        ],
    },
    {"role": "tool", "name": "weather", "content": '{"degrees": 21}'},
    {"role": "assistant", "content": "It is warm."},
]


def test_tools_and_calls_equal_those_of_transformers_and_calls_are_trained_on(saved, tokenizer):
    reference = AutoTokenizer.from_pretrained(saved["byte-level"])
    expected = reference.apply_chat_template(
        CALLS, tools=TOOLS, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
    )
    found = load_chat_template("chatml", tokenizer).encode(CALLS, tools=TOOLS)
    assert found.ids == expected["input_ids"]
    assert found.loss_mask == expected["assistant_masks"]
    assert found.text.count('"name": "weather"') == 3 and 'Par\\"is' in found.text
    marked = trained_text(tokenizer, found)
    assert marked.startswith('<tool_call>\n{"name": "weather"') and marked.endswith(
        "<|im_end|>It is warm.<|im_end|>"
    )


def test_values_of_none_are_as_if_they_were_not_there(saved, tokenizer):
    source = "{{ 'name' in messages[0] }}{{ messages[0].name is defined }}{{ tools is none }}"
    messages = [{"role": "user", "content": "a", "name": None}]
    reference = AutoTokenizer.from_pretrained(saved["byte-level"])
    expected = reference.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert made(source, tokenizer).encode(messages).text == expected == "FalseFalseTrue"


def test_documents_and_variables_reach_the_template(tokenizer):
    source = "{{ documents[0].text }}{{ tools[0].name }}{{ date }}{{ bos_token }}{{ messages[0].content }}"
    found = made(source, tokenizer).encode(
        [{"role": "user", "content": "c"}], documents=[{"text": "d"}], tools=[{"name": "t"}], date="today"
    )
    assert found.text == "dttoday<s>c"


@pytest.mark.parametrize("name", bundled_templates())
def test_without_generation_blocks_the_mask_is_the_same_but_for_leading_space(saved, name):
    tokenizer = load_tokenizer(saved["byte-level"])
    source = (BUNDLED / f"{name}.jinja").read_text()
    bare = made(re.sub(r"\{%-? *(end)?generation *-?%\}", "{#- -#}", source), tokenizer)
    for chat in CHATS.values():
        for prompt in (False, True):
            marked = made(source, tokenizer).encode(chat, add_generation_prompt=prompt)
            found = bare.encode(chat, add_generation_prompt=prompt)
            assert found.ids == marked.ids
            assert trained_text(tokenizer, found).replace(" ", "") == trained_text(tokenizer, marked).replace(
                " ", ""
            )


def test_without_generation_blocks_tool_calls_are_trained_on_from_the_prompt_on(tokenizer):
    bare = made(re.sub(r"\{%-? *(end)?generation *-?%\}", "{#- -#}", CHATML), tokenizer)
    marked = made(CHATML, tokenizer)
    assert bare.encode(CALLS, tools=TOOLS).loss_mask == marked.encode(CALLS, tools=TOOLS).loss_mask


@pytest.mark.parametrize("turns", [3, 5])
def test_a_token_that_ends_a_call_is_not_the_end_of_the_turn(saved, tmp_path, turns):
    """`</tool_call>` may be special, or not as in Qwen; the turn's own end is trained on either way."""
    content = json.loads((saved["byte-level"] / "tokenizer.json").read_text())
    flags = {**content["added_tokens"][0], "content": "</tool_call>", "id": 500}
    shutil.copytree(saved["byte-level"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**content, "added_tokens": [*content["added_tokens"], flags]})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert "</tool_call>" in tokenizer.special_tokens
    bare = made(re.sub(r"\{%-? *(end)?generation *-?%\}", "{#- -#}", CHATML), tokenizer)
    chat = [CHATS["exchange"][0], {"role": "assistant", "content": "Yes."}, *CALLS[1:]][: turns + 1]
    found, marked = (template.encode(chat, tools=TOOLS) for template in (bare, made(CHATML, tokenizer)))
    assert found.loss_mask == marked.loss_mask
    assert trained_text(tokenizer, found).count("</tool_call><|im_end|>") == 1
    assert trained_text(tokenizer, found).startswith("Yes.<|im_end|>")


@pytest.mark.parametrize("name", [name for name in bundled_templates() if name != "chatml"])
def test_templates_that_cannot_write_calls_of_tools_refuse_them(tokenizer, name):
    template = load_chat_template(name, tokenizer)
    call = [
        *CHATS["exchange"],
        CHATS["question"][0],
        {"role": "assistant", "content": None, "tool_calls": [{"name": "a"}]},
    ]
    for chat, tools in ((call, None), (CHATS["exchange"], TOOLS)):
        with pytest.raises(UserError, match="it writes no tools and no calls of them; chatml does"):
            template.encode(chat, tools=tools)


def test_without_a_generation_prompt_a_tool_call_is_trained_on_from_its_own_text_on(tokenizer):
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + (m.content or '') }}"
        "{% for c in m.tool_calls or [] %}CALL {{ c.name }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"name": "weather"}]}]
    assert trained_text(tokenizer, made(source, tokenizer).encode(messages)) == "weather<|im_end|>"


def test_without_generation_blocks_an_empty_answer_trains_its_end_token_alone(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
    ]
    found = made(UNMARKED, tokenizer).encode(messages)
    assert trained_text(tokenizer, found) == "<|im_end|>"
    assert found.loss_mask.index(1) == found.ids.index(tokenizer.token_id("<|im_end|>"), 8)


def test_the_next_turns_header_is_not_the_end_of_a_turn(tokenizer):
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content }}{% endfor %}"
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "sea"},
        {"role": "user", "content": "b"},
    ]
    template = made(source, tokenizer)
    assert trained_text(tokenizer, template.encode(messages)) == "sea"
    ended = made(source + "{{ eos_token }}", tokenizer)
    assert trained_text(tokenizer, ended.encode(messages)) == "sea"
    assert trained_text(tokenizer, ended.encode(messages[:2])) == "sea</s>"
    once = made("{% for m in messages %}{{ m.role + m.content }}{% endfor %}{{ eos_token }}", tokenizer)
    assert trained_text(tokenizer, once.encode(messages)) == "sea"
    assert trained_text(tokenizer, once.encode(messages[:2])) == "sea</s>"


def test_what_the_template_changes_of_an_answer_is_found_again(tokenizer):
    source = "{% for m in messages %}{{ m.role }}:{{ m.content.split('</think>')[-1]|trim|upper }}{{ eos_token }}{% endfor %}"
    messages = [
        {"role": "user", "content": "sea"},
        {"role": "assistant", "content": "<think>sea</think> sea "},
    ]
    assert trained_text(tokenizer, made(source, tokenizer).encode(messages)) == "SEA</s>"


def test_end_of_a_character_of_several_tokens_is_trained_on(tokenizer):
    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}.{% endfor %}"
    found = made(source, tokenizer).encode([{"role": "assistant", "content": "a 🦜"}])
    assert trained_text(tokenizer, found) == "a 🦜"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ messages[0].name }}", "no attribute 'name'"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "does not come to an end",
        ),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself without end"),
        ("{{ raise_exception('no\nsystem') }}", "no system"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% include 'x' %}", "no loader"),
        ("{{ messages + 1 }}", "can only concatenate"),
        ("{{ messages[0].content|nothing }}", "No filter named 'nothing'"),
        ("{% if %}", "is no Jinja"),
        ("{% generation %}", "is no Jinja"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
        ("{{ " + "a" + ".a" * 300 + " }}", "nested too deeply"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "nested too deeply"),
    ],
)
def test_what_a_template_does_wrong_is_told_in_one_line(tokenizer, source, said):
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        made(source, tokenizer).encode([{"role": "user", "content": "a"}])
    assert "\n" not in str(raised.value) and "of the test" in str(raised.value)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "there are no messages"),
        ("hello", "there are no messages"),
        ({"role": "user"}, "there are no messages"),
        ([["user", "hello"]], "message 1 is"),
        ([{"role": "user", "content": "a"}, {"content": "a"}], "message 2 is"),
        ([{"role": "user", "content": b"a"}], "message 1 holds a bytes"),
        ([{"role": "assistant", "content": "a"}], "must take turns; message 1 is of assistant"),
    ],
)
def test_messages_that_are_none_are_named(tokenizer, messages, said):
    with pytest.raises(UserError, match=said):
        load_chat_template("llama-2", tokenizer).encode(messages)


def test_tools_that_are_no_objects_are_refused(tokenizer):
    with pytest.raises(UserError, match="tools are a list of other things"):
        load_chat_template("chatml", tokenizer).encode(CHATS["question"], tools=["weather"])


def test_templates_are_found_beside_the_tokenizer(saved, tmp_path):
    directory = tmp_path / "t"
    shutil.copytree(saved["byte-level"], directory)
    tokenizer = load_tokenizer(directory)
    question = CHATS["question"]
    with pytest.raises(UserError, match=r"no chat template with .*name a file or one of alpaca, chatml"):
        load_chat_template(directory, tokenizer)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["chat_template"] = "config{{ bos_token }}{{ eos_token }}{{ unk_token }}"
    config["eos_token"] = {"content": "<|eot_id|>", "special": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for path in (directory, directory / "tokenizer.json"):
        assert load_chat_template(path, tokenizer).encode(question).text == "config<s><|eot_id|><unk>"
    config["chat_template"] = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{% generation %}with tools{% endgeneration %}"},
    ]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    several = load_chat_template(directory, tokenizer)
    assert several.encode(question).text == "plain"
    assert several.encode(question, tools=TOOLS).text == "with tools"
    assert all(several.encode(question, tools=TOOLS).loss_mask) and not any(
        several.encode(question).loss_mask
    )
    (directory / "chat_template.jinja").write_text("file{{ eos_token }}")
    assert load_chat_template(directory, tokenizer).encode(question).text == "file<|eot_id|>"
    assert directory / "chat_template.jinja" in tokenizer_files(directory), "a copy keeps its template"
    (tmp_path / "other.jinja").write_text("other{{ bos_token }}")
    other = load_chat_template(tmp_path / "other.jinja", tokenizer, config=directory)
    assert other.encode(question).text == "other<s>"


def test_without_a_configuration_begin_and_end_are_the_common_ones(saved, tmp_path):
    shutil.copy(saved["byte-level"] / "tokenizer.json", tmp_path / "tokenizer.json")
    found = load_chat_template("llama-2", load_tokenizer(tmp_path, eod_token="</s>")).encode(
        CHATS["exchange"]
    )
    assert found.text.startswith("<s>[INST]") and found.text.endswith("</s>")


def test_wrong_files_and_names_are_told(saved, tokenizer, tmp_path):
    with pytest.raises(
        UserError, match="no chat template at chatmm; give a file, a tokenizer with one, or one of alpaca"
    ):
        load_chat_template("chatmm", tokenizer)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_chat_template(tmp_path, tokenizer)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "rag", "template": ""}]}')
    with pytest.raises(UserError, match="has the templates rag but no default one"):
        load_chat_template(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8"):
        load_chat_template(tmp_path, tokenizer)


def test_a_bundled_template_asks_for_its_special_tokens(saved, tmp_path):
    content = (saved["byte-level"] / "tokenizer.json").read_text().replace("<|im_end|>", "<|other|>")
    (tmp_path / "tokenizer.json").write_text(content)
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(
        UserError, match=re.escape("needs the special tokens <|im_end|>, which the tokenizer lacks")
    ):
        load_chat_template("chatml", tokenizer)
    load_chat_template("zephyr", tokenizer)
