"""Preference data: shapes of records, what is left out and why, no prompt in two splits, rows that say which tokens are answers."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megalm.dataset import IndexedDataset, merge, show, verify
from megalm.dataset.answer_rows import AnswerRows
from megalm.dataset.blend import Source
from megalm.dataset.chat import ChatSettings
from megalm.dataset.opening import open_text
from megalm.dataset.preference_records import Preference, preference_of
from megalm.dataset.preference_stream import EveryPreference, PreferenceStream
from megalm.dataset.preferences import build_preferences
from megalm.dataset.values import read_values
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.chat import load_chat_template
from megalm.tokenizer.conversations import BadRecord
from tests.chats import make_tokenizer
from tests.preferences import make_pairs, preference_data, write_records

USER = {"role": "user", "content": "Why?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
SHAPES: list[dict[str, Any]] = [
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    {"question": "Why?", "chosen": YES, "rejected": [NO]},
    {"instruction": "Why?", "input": "", "output": "x", "chosen": "Because.", "rejected": "No."},
    {"conversations": [{"from": "human", "value": "Why?"}], "chosen": {"from": "gpt", "value": "Because."}}
    | {"rejected": {"from": "gpt", "value": "No."}},
    {"messages": [USER], "chosen": "Because.", "rejected": "No."},
    {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    {"prompt": "Why?", "chosen": [USER, YES], "rejected": [USER, NO]},
    {"chosen": "\n\nHuman: Why?\n\nAssistant: Because.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
]


@pytest.mark.parametrize("record", SHAPES, ids=lambda record: ",".join(record))
def test_pairs_of_every_shape_are_the_same(record: dict[str, Any]) -> None:
    assert preference_of(record) == Preference("pairs", [USER], (YES, NO), 0.0)
    assert preference_of({**record, "margin": 2}).value == 2


def test_judged_answers_and_dialogues_of_several_turns() -> None:
    assert preference_of({"prompt": "Why?", "response": "No.", "rating": 3}) == (
        "ratings",
        [USER],
        (NO,),
        3.0,
    )
    verdict = preference_of({"prompt": "Why?", "completion": "No.", "label": False})
    assert verdict == ("verdicts", [USER], (NO,), 0.0)
    start = "\n\nHuman: A?\n\nAssistant: B.\n\nHuman: C?\n\nAssistant: "
    long = preference_of({"chosen": start + "D.\n\nE.", "rejected": start + "F."}, system="Be kind.")
    assert [message["role"] for message in long.prompt] == ["system", "user", "assistant", "user"]
    assert [answer["content"] for answer in long.answers] == ["D.\n\nE.", "F."]
    assert long.first_text == "A?"
    extended = preference_of({"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"})
    assert extended.prompt[0]["content"] == "Add.\n\n1 2"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "Why?"}, "missing_field"),
        ({"prompt": "Why?", "chosen": "a"}, "missing_field"),
        ({"chosen": "a", "rejected": "b"}, "missing_field"),
        ({"prompt": "Why?", "chosen": "a", "rejected": "a"}, "identical_answers"),
        ({"prompt": "Why?", "chosen": " ", "rejected": "a"}, "empty_answer"),
        ({"prompt": " ", "chosen": "b", "rejected": "a"}, "empty_question"),
        ({"prompt": "Why?", "chosen": 1, "rejected": "a"}, "not_text"),
        ({"prompt": {}, "chosen": "b", "rejected": "a"}, "not_text"),
        ({"prompt": [USER, YES], "chosen": "b", "rejected": "a"}, "turn_order"),
        ({"prompt": [USER], "chosen": [YES, USER], "rejected": [NO, USER]}, "no_answer"),
        ({"chosen": [USER, YES], "rejected": [{**USER, "content": "What?"}, NO]}, "different_prompts"),
        ({"prompt": "Why?", "chosen": "b", "rejected": "a", "margin": "much"}, "bad_value"),
        ({"prompt": "Why?", "response": "b", "rating": float("nan")}, "bad_value"),
        ({"prompt": "Why?", "response": "b", "rating": True}, "bad_value"),
        ({"prompt": "Why?", "response": "b", "label": "good"}, "bad_value"),
        (["Why?"], "missing_field"),
    ],
)
def test_what_nothing_can_be_learned_from_is_told_by_reason(record: Any, reason: str) -> None:
    with pytest.raises(BadRecord) as found:
        preference_of(record)
    assert found.value.reason == reason


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def settings(tokenizer: Path, **options: Any) -> ChatSettings:
    return ChatSettings.of(tokenizer, "chatml", train_on="last", **options)


def test_copies_contradictions_and_long_records_are_counted_named_and_not_taken(
    tmp_path: Path, tokenizer: Path
) -> None:
    rows = [
        {"prompt": "one", "chosen": "good", "rejected": "bad"},
        {"prompt": "One ", "chosen": "good", "rejected": "Bad"},  # a copy of the first
        {"prompt": "two", "chosen": "good", "rejected": "bad"},
        {"prompt": "two", "chosen": "bad", "rejected": "good"},  # says the contrary
        {"prompt": "three", "chosen": "good", "rejected": "bad " * 200},
        {"prompt": "four", "chosen": "good", "rejected": "good"},
        {"prompt": "five", "chosen": "good", "rejected": ""},
        {"prompt": "one", "chosen": "better", "rejected": "good"},  # another opinion on the same prompt
    ]
    file = write_records(tmp_path / "rows.jsonl", rows)
    file.write_text(file.read_text() + "{broken\n")
    result = build_preferences(
        [file], tokenizer, tmp_path / "data", settings(tokenizer, max_length=200, max_rejected=0.9), "1"
    )
    assert result["splits"]["train"]["documents"] == 2
    line = f"{file} line "
    assert result["left_out"] == {
        "identical_answers": {"rows": 1, "first": [line + "6"]},
        "empty_answer": {"rows": 1, "first": [line + "7"]},
        "invalid_json": {"rows": 1, "first": [line + "9"]},
        "copy": {"rows": 1, "first": [line + "2"]},
        "contradiction": {"rows": 2, "first": [line + "3", line + "4"]},
        "too_long": {"rows": 1, "first": [line + "5"]},
    }
    with pytest.raises(UserError, match=r"6 of 8 records cannot be learned from, more than max_rejected 0.1"):
        build_preferences([file], tokenizer, tmp_path / "new", settings(tokenizer, max_length=200), "1")
    with pytest.raises(UserError, match="exists; choose another prefix"):
        build_preferences([file], tokenizer, tmp_path / "data", settings(tokenizer), "1")
    mixed = write_records(
        tmp_path / "mixed.jsonl", [rows[0], {"prompt": "x", "response": "y", "label": True}]
    )
    with pytest.raises(UserError, match=r"mix kinds of preferences: .*verdicts \(.*line 2\)"):
        build_preferences([mixed], tokenizer, tmp_path / "new", settings(tokenizer), "1")


def test_one_answer_with_two_verdicts_is_not_taken(tmp_path: Path, tokenizer: Path) -> None:
    rows = [{"prompt": "one", "response": "a", "label": number < 1} for number in range(2)]
    rows += [{"prompt": "one", "response": "b", "label": True}] * 2
    file = write_records(tmp_path / "rows.jsonl", rows)
    result = build_preferences(
        [file], tokenizer, tmp_path / "data", settings(tokenizer, max_rejected=0.9), "1"
    )
    assert {reason: found["rows"] for reason, found in result["left_out"].items()} == {
        "contradiction": 2,
        "copy": 1,
    }


def test_no_prompt_is_in_two_splits_and_order_does_not_hang_on_the_file(
    tmp_path: Path, tokenizer: Path
) -> None:
    pairs = make_pairs(60)
    rows = pairs + [{**pair, "chosen": pair["chosen"] + " again"} for pair in pairs]
    file = write_records(tmp_path / "rows.jsonl", rows)
    packed = tmp_path / "reversed.json.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows[::-1]).encode()))
    for path, name in ((file, "a"), (packed, "b")):
        build_preferences([path], tokenizer, tmp_path / name, settings(tokenizer), "60,20,20")
    prompts = []
    reader = load_tokenizer(tokenizer)
    for split in ("train", "valid", "test"):
        assert (tmp_path / f"a_{split}.bin").read_bytes() == (tmp_path / f"b_{split}.bin").read_bytes()
        documents = show(tmp_path / f"a_{split}", reader, 0, 1000)
        prompts.append({entry["text"].split("<|im_end|>")[0] for entry in documents})
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 60
    assert min(map(len, prompts)) > 3


def test_token_files_hold_what_the_template_writes_with_the_answers_marked(
    tmp_path: Path, tokenizer: Path
) -> None:
    rows = [
        {"prompt": [USER, YES, USER], "chosen": "good", "rejected": "very bad", "margin": 1.5},
    ]
    file = write_records(tmp_path / "rows.jsonl", rows)
    build_preferences([file], tokenizer, tmp_path / "data", settings(tokenizer), "1")
    dataset, reader = IndexedDataset(tmp_path / "data_train"), load_tokenizer(tokenizer)
    template = load_chat_template("chatml", reader)
    assert (dataset.num_documents, dataset.num_sequences) == (1, 2)
    for number, answer in enumerate(("good", "very bad")):
        ids, mask, _ = template.encode([USER, YES, USER, {"role": "assistant", "content": answer}])
        assert dataset[number].tolist() == ids
        assert dataset.loss_mask is not None
        start = int(dataset.sequence_pointers[number]) // dataset.dtype.itemsize
        found = dataset.loss_mask.read(start, len(ids)).tolist()
        first = len(ids) - mask[::-1].index(1) - 1  # the last turn alone: the earlier answer is not judged
        assert reader.decode([i for i, one in zip(ids, found, strict=True) if one]) == f"{answer}<|im_end|>"
        assert found[first] == 1
    assert read_values(dataset).tolist() == [1.5]
    verify(tmp_path / "data_train")
    assert show(tmp_path / "data_train", reader)[0]["value"] == 1.5
    with pytest.raises(UserError, match="has preferences, which are not copied"):
        merge([tmp_path / "data_train"] * 2, tmp_path / "both")
    (tmp_path / "data_train.values").write_bytes(b"x")
    with pytest.raises(UserError, match="is not the values of 1 documents"):
        read_values(dataset)


@pytest.mark.parametrize("task", ["pretrain", "sft"])
def test_tasks_on_texts_refuse_preferences(task: str, tmp_path: Path) -> None:
    from megalm.config import parse_config

    prefix = preference_data(tmp_path, make_pairs(10), splits="1")
    sections = {"task": task, "data": {"train": [{"path": f"{prefix}_train"}]}, "batch": {"seq_length": 64}}
    with pytest.raises(UserError, match=f"holds preferences, which task `{task}` would take for texts"):
        config = parse_config(sections)
        open_text(config, config.data.train, None)


def rows_of(length: int, pooling: str | None = None, fixed: bool = False) -> AnswerRows:
    return AnswerRows(length, 0, pooling, fixed)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preference_data(tmp_path_factory.mktemp("pairs"), make_pairs(50), splits="1")


def blend(prefix: Path) -> list[Source]:
    return [(f"{prefix}_train", 1.0)]


def test_a_sample_is_two_rows_and_a_function_of_its_number(pairs: Path) -> None:
    stream = PreferenceStream(blend(pairs), 7, rows_of(96))
    whole = stream.batch(np.arange(50))
    dataset = stream.datasets[0]
    assert dataset.loss_mask is not None
    assert whole.rows_per_sample == 2 and len(whole.tokens_BS) == 100
    assert whole.classes_B.tolist() == [1, 0] * 50
    texts = {tuple(dataset[number].tolist()) for number in range(100)}
    seen = set()
    for tokens, labels, mask, length in zip(
        whole.tokens_BS, whole.labels_BS, whole.loss_mask_BS, whole.lengths_B, strict=True
    ):
        last = int(np.flatnonzero(mask)[-1])
        ids = [*tokens[: last + 1].tolist(), int(labels[last])]
        assert labels[:last].tolist() == ids[1:-1] and int(mask.sum()) == length
        (text,) = (text for text in texts if text[: len(ids)] == tuple(ids))
        seen.add(text)
    assert seen == texts, "each answer once an epoch"
    some = stream.batch(np.array([13, 4]))
    width = some.tokens_BS.shape[1]
    for row, number in enumerate((26, 27, 8, 9)):
        assert (some.tokens_BS[row] == whole.tokens_BS[number, :width]).all()
    assert width % 64 == 0 or width == 96
    assert (
        PreferenceStream(blend(pairs), 7, rows_of(96, fixed=True)).batch(np.array([3])).tokens_BS.shape[1]
        == 96
    )


def test_a_head_sees_the_last_token_of_the_answer(pairs: Path) -> None:
    texts = PreferenceStream(blend(pairs), 7, rows_of(96)).batch(np.arange(8))
    heads = PreferenceStream(blend(pairs), 7, rows_of(96, "last")).batch(np.arange(8))
    means = PreferenceStream(blend(pairs), 7, rows_of(96, "mean")).batch(np.arange(8))
    assert (heads.loss_mask_BS.sum(1) == 1).all()
    for row in range(16):
        last = int(heads.loss_mask_BS[row].argmax())
        assert heads.tokens_BS[row, last] == texts.labels_BS[row, last - 1], "the end of the turn"
        assert texts.loss_mask_BS[row, last - 1] == 1 and not texts.loss_mask_BS[row, last:].any()
        assert means.loss_mask_BS[row].sum() == last + 1
    assert (heads.lengths_B == texts.lengths_B).all()


def test_long_prompts_lose_their_start_or_are_left_out(tmp_path: Path) -> None:
    records = make_pairs(20)
    for record in records[:5]:
        record["prompt"] += " tail" * 60
    records[5]["rejected"] *= 40  # no cut of the prompt makes room for this
    prefix = preference_data(tmp_path, records, splits="1")
    dropped = PreferenceStream(blend(prefix), 1, rows_of(80))
    assert "14 pairs, 6 left out as too long for samples of 80 tokens" in dropped.describe()[0]
    assert len({row.tobytes() for row in dropped.batch(np.arange(14)).tokens_BS}) == 28
    cut = PreferenceStream(blend(prefix), 1, rows_of(80), "cut_prompt")
    assert (
        "19 pairs, 1 left out as too long for samples of 80 tokens, 5 without their prompts' start"
        in (cut.describe()[0])
    )
    for pooling in (None, "last"):
        batch = PreferenceStream(blend(prefix), 1, rows_of(80, pooling), "cut_prompt").batch(np.arange(19))
        assert batch.tokens_BS.shape == (38, 80)
        assert (batch.loss_mask_BS[:, -1] == 1).sum() == 10, "rows that are full end with the answer"
    with pytest.raises(UserError, match="no answer of .* fits a sample of 4 tokens"):
        PreferenceStream(blend(prefix), 1, rows_of(4))


def test_validation_takes_each_pair_once_and_fills_up_with_rows_that_do_not_count(pairs: Path) -> None:
    every = EveryPreference([*blend(pairs), *blend(pairs)], 7, rows_of(96))
    assert every.samples_before_repeats() == 100
    batch = every.batch(np.array([0, 99, 100, 49, 50]))
    assert batch.classes_B.tolist() == [1, 0, 1, 0, -1, -1, 1, 0, 1, 0]
    assert (batch.tokens_BS[0:2] == batch.tokens_BS[8:10]).all(), "the second source begins at number 50"


def test_mismatched_rows_are_the_prompt_with_the_next_sample_s_answer(pairs: Path) -> None:
    for kind in (PreferenceStream, EveryPreference):
        stream = kind(blend(pairs), 7, rows_of(96), mismatched=True)
        mine, last = stream.batch(np.arange(6)), stream.batch(np.array([49]))
        assert mine.mismatched is not None and mine.mismatched.rows_per_sample == 2
        for row in range(10):
            begin = int(mine.loss_mask_BS[row].argmax())
            other = mine.mismatched
            assert other.loss_mask_BS[row].argmax() == begin
            assert (other.tokens_BS[row, : begin + 1] == mine.tokens_BS[row, : begin + 1]).all()
            count = int(other.loss_mask_BS[row].sum())
            theirs = mine.labels_BS[row + 2][mine.loss_mask_BS[row + 2] == 1]
            assert other.labels_BS[row, begin : begin + count].tolist() == theirs.tolist()
        if kind is EveryPreference:
            assert last.mismatched is not None
            first = mine.labels_BS[0][mine.loss_mask_BS[0] == 1]
            assert (
                last.mismatched.labels_BS[0][last.mismatched.loss_mask_BS[0] == 1].tolist() == first.tolist()
            )


def test_judged_answers_are_one_row_with_their_value(tmp_path: Path) -> None:
    records = [{"prompt": f"{n}", "completion": "a b", "label": n % 3 == 0} for n in range(12)]
    stream = EveryPreference(blend(preference_data(tmp_path, records, splits="1")), 1, rows_of(64))
    batch = stream.batch(np.arange(12))
    assert batch.rows_per_sample == 1 and batch.classes_B.sum() == 4
    assert (batch.values_B == batch.classes_B).all()
    rated = [{"prompt": f"{n}", "response": "a b", "rating": n / 2} for n in range(4)]
    prefix = preference_data(tmp_path, rated, splits="1")
    values = EveryPreference(blend(prefix), 1, rows_of(64)).batch(np.arange(4)).values_B
    assert sorted(values.tolist()) == [0.0, 0.5, 1.0, 1.5]


def test_sources_of_several_kinds_or_without_preferences_are_refused(tmp_path: Path, pairs: Path) -> None:
    rated = preference_data(tmp_path, [{"prompt": "x", "response": "y", "rating": 1}] * 1, splits="1")
    with pytest.raises(UserError, match="the data mix kinds of preferences: pairs"):
        PreferenceStream([*blend(pairs), *blend(rated)], 1, rows_of(64))
    (tmp_path / "data_train.values").unlink()
    with pytest.raises(
        UserError, match="holds no preferences: make it with `megalm dataset build-preferences`"
    ):
        PreferenceStream(blend(rated), 1, rows_of(64))
