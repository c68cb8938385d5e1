"""Token files of conversations: ids and masks as Hugging Face's, the same however built, and every bad record named."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from megalm.cli import app
from megalm.dataset import IndexedDataset, merge, verify
from megalm.dataset import build as building
from megalm.dataset.chat import ChatFile, ChatSettings, without_oldest
from megalm.dataset.plan import Plan
from megalm.dataset.sidecar import read_sidecar
from megalm.errors import UserError
from megalm.tasks import run_tasks
from megalm.tokenizer.chat import BUNDLED
from megalm.tokenizer.conversations import Conversation
from megalm.tokenizer.load import load_tokenizer
from tests.chats import build_chats, make_chats, make_tokenizer, write_chats

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def samples(prefix: Path) -> dict[str, tuple[list[int], list[int]]]:
    """Ids and marks of each sample, by the name that its origin has."""
    dataset = IndexedDataset(prefix)
    assert dataset.loss_mask is not None and dataset.origins is not None
    found = {}
    for number in range(dataset.num_documents):
        start = int(dataset.document_starts(np.array([number]))[0])
        ids = dataset[number].tolist()
        found[dataset.origins.origin(number).name] = ids, dataset.loss_mask.read(start, len(ids)).tolist()
    return found


def write_records(path: Path, records: list) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def left_out(prefix: Path) -> list[dict]:
    return [json.loads(line) for line in Path(f"{prefix}.left_out").read_text().splitlines()]


@pytest.mark.parametrize("template", ["chatml", "alpaca", "plain"])
def test_ids_and_masks_equal_those_of_hugging_face(tokenizer, tmp_path, template):
    chats = make_chats(12)
    build_chats(
        [write_chats(tmp_path / "a.jsonl", chats)],
        tokenizer,
        tmp_path / "d",
        template,
        build={"extras": {"id_key": "id"}},
    )
    found = samples(tmp_path / "d_train")
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    for number, chat in enumerate(chats):
        expected = reference.apply_chat_template(
            chat,
            chat_template=(BUNDLED / f"{template}.jinja").read_text(),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = found[str(number)]
        assert (ids, mask) == (expected["input_ids"], expected["assistant_masks"])
        assert 0 < sum(mask) < len(mask)
    assert verify(tmp_path / "d_train")["verified"]


def test_what_counts_can_be_the_last_turn_or_all_and_turns_of_weight_0_never_do(tokenizer, tmp_path):
    first = {"role": "assistant", "content": "the lazy dog", "weight": 0}
    chat = [{"role": "user", "content": "fox"}, first, *TURNS]
    path = write_chats(tmp_path / "a.jsonl", [chat])
    found = {}
    for train_on in ("assistant", "last", "all"):
        options = {"train_on": train_on, "build": {"extras": {"id_key": "id"}}}
        build_chats([path], tokenizer, tmp_path / train_on, **options)
        found[train_on] = samples(tmp_path / f"{train_on}_train")["0"]
    assert found["assistant"] == found["last"] and all(found["all"][1])
    ids, mask = found["last"]
    counted = [i for i, counts in zip(ids, mask, strict=True) if counts]
    assert counted == [i for i in ids[-len(counted) - 1 : -1]]  # only a line end follows the last turn

    del first["weight"]
    write_chats(path, [chat])
    for train_on in ("assistant", "last"):
        options = {"train_on": train_on, "build": {"overwrite": True, "extras": {"id_key": "id"}}}
        build_chats([path], tokenizer, tmp_path / train_on, **options)
        found[train_on] = samples(tmp_path / f"{train_on}_train")["0"]
    assert found["last"] == (ids, mask) and sum(found["assistant"][1]) > sum(mask)


def test_the_result_depends_on_neither_the_order_of_the_work_nor_a_kill(tokenizer, tmp_path, monkeypatch):
    inputs = [
        write_chats(tmp_path / f"{name}.jsonl", make_chats(15, seed)) for seed, name in enumerate("abc")
    ]
    with open(inputs[1], "a") as file:
        file.write("{\n")
    settings = {"max_length": 40, "too_long": "oldest", "max_rejected": 1}

    def build(name: str) -> dict[str, bytes]:
        build_chats(inputs, tokenizer, tmp_path / name, build={"splits": "3,1"}, **settings)
        files = (path for path in tmp_path.glob(f"{name}[._]*") if path.is_file())
        return {path.name.removeprefix(name): path.read_bytes() for path in files}

    once = build("one")
    assert {"_train.bin", "_train.mask", "_valid.json", ".left_out"} <= once.keys()

    def killed(tasks, workers, advance) -> None:
        run_tasks(tasks[::-1][:3], 1, advance)
        plan = Plan.read(tmp_path / "two.build")
        assert (
            plan.begun_in(tmp_path / "two.build") and plan.recipe.extras.chat
        )  # as an executor's tasks read it
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(building, "run_tasks", killed)
        build("two")
    assert not list(tmp_path.glob("two_*"))
    assert build("two") == once


def test_every_bad_record_is_counted_by_its_reason_and_named(tokenizer, tmp_path):
    long = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "quick brown " * 40}]
    records = [
        {"id": 1, "messages": TURNS},
        '{"id": 2, "messages": [',
        {"id": 3, "messages": [TURNS[0], {"role": "assistant", "content": ""}]},
        {"id": 4, "instruction": "a"},
        {"id": 5, "messages": [{"role": "cat", "content": "x"}]},
        {"id": 6, "messages": TURNS[::-1]},
        {"id": 1, "messages": TURNS},
        {"id": 7, "messages": long},
        {"id": 8, "messages": [*long, *TURNS]},
        "[]",
    ]
    path = write_records(tmp_path / "a.jsonl", records)
    with pytest.raises(
        UserError, match=r"9 of 10 records cannot .*max_rejected 0.1.*a\.jsonl:2 invalid_json"
    ):
        build_chats([path], tokenizer, tmp_path / "d", max_length=60)
    assert len(left_out(tmp_path / "d")) == 9 and not list(tmp_path.glob("d_*"))
    built = build_chats([path], tokenizer, tmp_path / "d", max_length=60, too_long="oldest", max_rejected=0.8)
    expected = {
        2: "invalid_json",
        3: "empty_answer",
        4: "missing_field",
        5: "unknown_role",
        6: "turn_order",
        7: "duplicate_id",
        8: "too_long",
        9: "oldest",
        10: "missing_field",
    }
    notes = left_out(tmp_path / "d")
    assert {note["line"]: note["reason"] for note in notes} == expected
    assert [note["line"] for note in notes if note["kept"]] == [9]
    assert {note["path"] for note in notes} == {str(path)}
    counted = built["train"]["conversations"]
    assert (counted["read"], counted["kept"]) == (10, 2) and counted["changed"] == {"oldest": 1}
    assert counted["left_out"]["missing_field"] == 2 and sum(counted["left_out"].values()) == 8
    dataset = IndexedDataset(tmp_path / "d_train")
    assert dataset.num_documents == 2 and dataset[0].tolist() == dataset[1].tolist()
    with pytest.raises(UserError, match=r"more than max_rejected 0 of them"):
        build_chats([path], tokenizer, tmp_path / "strict", max_rejected=0)
    write_records(path, ["{", "{"])
    with pytest.raises(
        UserError, match=r"2 of 2 records cannot be learned from, all of them: 2 invalid_json"
    ):
        build_chats([path], tokenizer, tmp_path / "none", max_rejected=1)


def test_a_sample_without_a_label_that_counts_is_left_out(tokenizer, tmp_path):
    """The first token is the label of none."""
    answer = "{% generation %}{{ messages[1].content }}{% endgeneration %}"
    templates = {"{{ messages[0].content }}": 0, answer: 0, "{{ messages[0].content }}" + answer: 1}
    path = write_records(tmp_path / "a.jsonl", [{"messages": TURNS}])
    for source, count in templates.items():
        file = ChatFile(path, ChatSettings({"default": source}, "t", "t", {}), load_tokenizer(tokenizer))
        assert len(list(file.samples())) == count
        assert [note.reason for note in file.notes] == ["nothing_counts"] * (1 - count)


def test_a_sample_that_is_cut_keeps_its_beginning_unless_no_answer_is_in_it(tokenizer, tmp_path):
    chats = [
        [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "dog " * 50}],
        [{"role": "user", "content": "fox " * 50}, {"role": "assistant", "content": "dog"}],
    ]
    path = write_chats(tmp_path / "a.jsonl", chats)
    options = {"extras": {"id_key": "id"}}
    build_chats([path], tokenizer, tmp_path / "whole", build=options)
    built = build_chats(
        [path], tokenizer, tmp_path / "cut", max_length=30, too_long="cut", max_rejected=0.5, build=options
    )
    assert built["train"]["conversations"]["changed"] == {"cut": 1}
    assert built["train"]["conversations"]["left_out"] == {"too_long": 1}
    ids, mask = samples(tmp_path / "whole_train")["0"]
    assert samples(tmp_path / "cut_train") == {"0": (ids[:30], mask[:30])}


def test_the_oldest_exchange_is_left_out_with_its_tools_and_the_systems_text_stays():
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    system = {"role": "system", "content": "s"}
    found = {"role": "tool", "content": "t"}
    whole = Conversation([system, TURNS[0], call, found, TURNS[1], *TURNS], [{"name": "f"}])
    shorter = without_oldest(whole)
    assert shorter == Conversation([system, *TURNS], [{"name": "f"}])
    assert without_oldest(shorter) is None


def test_the_command_says_what_was_left_out_and_refuses_options_without_chat(tokenizer, tmp_path):
    rows = [{"q": "fox", "a": "dog"}] * 11 + [{"q": "fox"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    arguments = ["dataset", "build", str(path), "--tokenizer", str(tokenizer), "-o", str(tmp_path / "d")]
    keys = ["--prompt-key", "q", "--answer-key", "a"]
    rest = ["--chat", "prompt", "--chat-template", "plain", *keys, "--splits", "1", "--workers", "1"]
    result = CliRunner().invoke(app, [*arguments, *rest])
    assert result.exit_code == 0, result.output
    assert "1 of 12 records left out: 1 missing_field" in result.stderr
    assert f"{path}:1 missing_field (nothing under 'a' (found keys q))" in result.stderr
    sidecar = read_sidecar(tmp_path / "d_train")
    assert sidecar["chat"]["template"] == {"default": (BUNDLED / "plain.jinja").read_text()}
    assert sidecar["chat"]["format"] == "prompt" and sidecar["append_eod"] is False
    result = CliRunner().invoke(app, [*arguments, "--train-on", "last"])
    assert isinstance(result.exception, UserError) and "--train-on is for conversations" in str(
        result.exception
    )
    for more, said in (
        (["--sample-by", "line"], "--sample-by does nothing with --chat"),
        (["--too-long", "cut"], "too_long 'cut' needs max_length"),
    ):
        result = CliRunner().invoke(app, [*arguments, *rest, *more])
        assert isinstance(result.exception, UserError) and said in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--chat", "auto"])
    assert isinstance(result.exception, UserError) and "has no chat template" in str(result.exception)


def test_datasets_of_different_templates_are_not_merged(tokenizer, tmp_path):
    path = write_chats(tmp_path / "a.jsonl", make_chats(3))
    for template in ("chatml", "plain"):
        build_chats([path], tokenizer, tmp_path / template, template)
    prefixes = [tmp_path / "chatml_train", tmp_path / "plain_train"]
    with pytest.raises(UserError, match="were made with different chat templates"):
        merge(prefixes, tmp_path / "both")
    merge(prefixes[:1], tmp_path / "one")
    assert read_sidecar(tmp_path / "one")["chat"] == read_sidecar(prefixes[0])["chat"]
