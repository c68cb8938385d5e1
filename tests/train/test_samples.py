"""Answers generated in training: the same under every layout, unnoticed by the training, measured, written once a step."""

import json
from pathlib import Path
from typing import Any

import pytest

from megalm.config import Config, parse_config
from megalm.dataset import build_dataset
from megalm.errors import UserError
from megalm.tokenizer import load_tokenizer, train_bpe
from megalm.train.callbacks.metrics import read_metrics
from megalm.train.callbacks.samples import FILE_NAME, Samples
from megalm.train.samples import open_prompts
from tests.train.runs import PP2, TP2, events, step_lines, train_in_world, validation_losses

SPECIAL = ["<|im_start|>", "<|im_end|>"]
PROMPTS = ["the sea", "", {"prompt": "wood and the", "reference": ["hand", "end"]}, "of 3"]
EVERY_STEP = ["train.eval_interval=1", "train.steps=3"]


@pytest.fixture(scope="module")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the special tokens of ChatML, and token files."""
    directory: Path = tmp_path_factory.mktemp("text")
    texts = [
        f"the {word} of the end and the hand of {word} {n}" for n in range(80) for word in ("sea", "wood")
    ]
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_bpe([directory / "text.jsonl"], 290, directory / "tokenizer", special_tokens=SPECIAL)
    build_dataset(
        [directory / "text.jsonl"], directory / "tokenizer", directory / "data", workers=1, splits="80,20,0"
    )
    return directory


def sampled(directory: Path, data: Path, *overrides: str, prompts: Any = PROMPTS) -> Config:
    """A run with large random weights, so that answers vary, and dropout, whose draws must not be disturbed."""
    sections = {
        "run": {"dir": str(directory)},
        "model": {
            "preset": "llama-tiny",
            "max_sequence_length": 48,
            "init_method_std": 0.2,
            "hidden_dropout": 0.1,
        },
        "tokenizer": {"path": str(data / "tokenizer")},
        "data": {
            "train": [{"path": str(data / "data_train")}],
            "valid": [{"path": str(data / "data_valid")}],
        },
        "batch": {"seq_length": 32, "micro_batch_size": 2, "global_batch_size": 4},
        "optimizer": {"lr": 1e-3, "min_lr": 1e-4},
        "train": {"steps": 4, "eval_interval": 2, "eval_batches": 1},
        "samples": {"prompts": prompts, "max_new_tokens": 12, "batch_size": 3},
        "precision": {"dtype": "fp64"},
    }
    return parse_config(sections, overrides)


def sample_lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / FILE_NAME).read_text().splitlines()]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory, text_data: Path) -> Path:
    directory: Path = tmp_path_factory.mktemp("one")
    train_in_world(1, sampled(directory, text_data, "model.hidden_dropout=0"))
    return directory


def test_training_is_bit_identical_with_and_without_samples(tmp_path: Path, text_data: Path) -> None:
    train_in_world(1, sampled(tmp_path / "with", text_data))
    train_in_world(1, sampled(tmp_path / "without", text_data, "samples.prompts=null"))
    assert step_lines(tmp_path / "with") == step_lines(tmp_path / "without")
    assert validation_losses(tmp_path / "with") == validation_losses(tmp_path / "without")
    assert not (tmp_path / "without" / FILE_NAME).exists()


def test_a_line_a_prompt_and_validation_tells_prompt_answer_and_why_it_ended(one_process: Path) -> None:
    lines = sample_lines(one_process)
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4
    assert [line["prompt"] for line in lines[:4]] == ["the sea", "", "wood and the", "of 3"]
    assert [line.get("references") for line in lines[:4]] == [None, None, ["hand", "end"], None]
    assert {line["finish_reason"] for line in lines} <= {"length", "stop"}
    assert all(line["tokens"] == 12 for line in lines if line["finish_reason"] == "length")
    assert len({line["answer"] for line in lines[:4]}) == 4, (
        "random weights of this size write different texts"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        [TP2],
        [TP2, "parallel.sequence_parallel=true"],
        [PP2],
        [],
        ["parallel.context_parallel_size=2"],
    ],
    ids=["TP2", "TP2+SP", "PP2", "DP2", "CP2"],
)
def test_answers_are_those_of_one_process(
    tmp_path: Path, text_data: Path, one_process: Path, overrides: list[str]
) -> None:
    train_in_world(2, sampled(tmp_path, text_data, "model.hidden_dropout=0", *overrides))
    assert sample_lines(tmp_path) == sample_lines(one_process)


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.zero_stage=1", "parallel.overlap_param_gather=true"],
        ["engine=deepspeed", "parallel.zero_stage=2"],
    ],
    ids=["ZeRO-1, overlapped", "ZeRO-2"],
)
def test_sharded_optimizers_answer_with_the_weights_of_the_step(
    tmp_path: Path, text_data: Path, overrides: list[str]
) -> None:
    large = ["precision.dtype=fp32", "model.hidden_dropout=0", "optimizer.lr=0.05", *EVERY_STEP]
    train_in_world(1, sampled(tmp_path / "one", text_data, *large))
    train_in_world(2, sampled(tmp_path / "two", text_data, *large, *overrides))
    lines = sample_lines(tmp_path / "one")
    assert lines[0]["answer"] != lines[4]["answer"], "a step this large changes the answers"
    assert sample_lines(tmp_path / "two") == lines


def test_an_interleaved_pipeline_answers_as_one_process(tmp_path: Path, text_data: Path) -> None:
    deep = ["model.num_layers=4", "model.hidden_dropout=0", "train.steps=1", "train.eval_interval=1"]
    interleaved = [PP2, "parallel.virtual_pipeline_model_parallel_size=2"]
    train_in_world(1, sampled(tmp_path / "one", text_data, *deep))
    train_in_world(2, sampled(tmp_path / "two", text_data, *deep, *interleaved))
    assert sample_lines(tmp_path / "two") == sample_lines(tmp_path / "one")


def test_a_resumed_run_has_each_step_once(tmp_path: Path, text_data: Path) -> None:
    whole = sampled(tmp_path / "whole", text_data, *EVERY_STEP)
    train_in_world(1, whole)
    parted = sampled(tmp_path / "parted", text_data, *EVERY_STEP, "train.exit_after_steps=2")
    train_in_world(1, parted)
    with open(tmp_path / "parted" / FILE_NAME, "a") as file:
        # what a run that went on without a checkpoint, and was killed amid a line, left behind
        file.write(json.dumps({"step": 3, "prompt": "the sea", "answer": "stale"}) + '\n{"step": 3, "pro')
    parted.train.exit_after_steps = None
    train_in_world(1, parted)
    assert sample_lines(tmp_path / "parted") == sample_lines(tmp_path / "whole")


def test_steps_that_a_rollback_undoes_are_dropped_when_they_come_again(tmp_path: Path) -> None:
    from types import SimpleNamespace

    run: Any = SimpleNamespace(directory=tmp_path, step=0, layout=SimpleNamespace(rank=0))
    callback = Samples(None, None, None)  # type: ignore[arg-type]  # nothing is generated here
    callback.on_start(run)
    for step in (1, 2, 3):
        callback.on_step(run, SimpleNamespace(step=step))  # type: ignore[arg-type]
        with open(tmp_path / FILE_NAME, "a") as file:
            file.write(json.dumps({"step": step}) + "\n")
    callback.on_step(run, SimpleNamespace(step=2))  # type: ignore[arg-type]
    assert [line["step"] for line in sample_lines(tmp_path)] == [1]


def test_measures_are_figures_of_the_validation_and_full_for_the_answers_themselves(
    tmp_path: Path, text_data: Path, one_process: Path
) -> None:
    first, second, third = sample_lines(one_process)[:3]
    prompts = [{"prompt": line["prompt"], "reference": ["xyz", line["answer"]]} for line in (first, third)]
    prompts.append({"prompt": second["prompt"], "reference": "xyz"})
    changes = ["model.hidden_dropout=0", "samples.metrics=[rougeL, exact_match]", "train.exit_after_steps=2"]
    result = train_in_world(1, sampled(tmp_path, text_data, *changes, prompts=prompts))
    [line] = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "valid_loss" in line]
    assert line["valid_exact_match"] == result["valid_exact_match"] == pytest.approx(2 / 3)
    assert 0 < line["valid_rougeL"] <= 2 / 3


def test_answers_are_generated_at_every_so_many_th_validation_and_the_last(
    tmp_path: Path, text_data: Path
) -> None:
    train_in_world(
        1,
        sampled(
            tmp_path, text_data, "train.eval_interval=1", "train.steps=5", "samples.every=2", prompts=["a"]
        ),
    )
    assert [line["step"] for line in sample_lines(tmp_path)] == [2, 4, 5]


def opened(data: Path, *overrides: str, prompts: Any) -> Any:
    return open_prompts(
        sampled(data / "unused", data, *overrides, prompts=prompts), load_tokenizer(data / "tokenizer")
    )


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "the sea", "input": "", "output": "and the hand"},
        {"conversations": [{"from": "human", "value": "the sea"}, {"from": "gpt", "value": "and the hand"}]},
    ],
    ids=["alpaca", "sharegpt"],
)
def test_records_of_other_shapes_serve_as_prompts_with_their_answers(
    text_data: Path, record: dict[str, Any]
) -> None:
    plain = {"prompt": [{"role": "user", "content": "the sea"}], "reference": "and the hand"}
    found, expected = (
        opened(text_data, "samples.chat_template=chatml", prompts=[one]).prompts for one in (record, plain)
    )
    assert found == expected


def test_messages_go_through_the_chat_template_and_end_with_its_turn(text_data: Path) -> None:
    messages = [{"role": "user", "content": "the sea"}, {"role": "assistant", "content": "and the hand"}]
    found = opened(text_data, "samples.chat_template=chatml", prompts=[{"messages": messages}])
    [prompt] = found.prompts
    assert prompt.text.endswith("<|im_start|>assistant\n") and "the sea" in prompt.text
    assert "hand" not in prompt.text and prompt.references == ["and the hand"]
    assert load_tokenizer(text_data / "tokenizer").decode(prompt.ids) == prompt.text
    assert found.options.stop == ["<|im_end|>"]
    assert found.options.greedy


def test_prompts_come_from_a_file_up_to_a_limit(tmp_path: Path, text_data: Path) -> None:
    lines = [
        json.dumps("first\u2028line", ensure_ascii=False),
        "",
        json.dumps({"prompt": "second"}),
        "{broken",
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    name = str(tmp_path / "prompts.jsonl")
    found = opened(text_data, "samples.max_samples=2", prompts=name)
    assert [prompt.text for prompt in found.prompts] == ["first\u2028line", "second"]
    with pytest.raises(UserError, match=r"line 4 is no JSON"):
        opened(text_data, prompts=name)


def test_prompts_without_room_for_an_answer_are_left_out_and_told(tmp_path: Path, text_data: Path) -> None:
    found = opened(text_data, prompts=["the sea", "0 1 2 3 " * 10])
    assert [prompt.text for prompt in found.prompts] == ["the sea"]
    room = 48 - len(found.prompts[0].ids)
    assert opened(text_data, f"samples.max_new_tokens={room}", prompts=["the sea"]).prompts
    with pytest.raises(UserError, match="1 of 1 prompts leave no room"):
        opened(text_data, f"samples.max_new_tokens={room + 1}", prompts=["the sea"])
    [notice] = found.notices
    assert (
        "1 of 2 prompts leave no room" in notice and "samples.prompts.1" in notice and "48 tokens" in notice
    )
    with pytest.raises(UserError, match="lower samples.max_new_tokens"):
        opened(text_data, prompts=["0 1 2 3 " * 10])
    train_in_world(1, sampled(tmp_path, text_data, "train.steps=1", prompts=["the sea", "0 1 2 3 " * 10]))
    assert any("leave no room" in event for event in events(tmp_path))


@pytest.mark.parametrize(
    ("prompts", "overrides", "message"),
    [
        ([], [], "there is none in an empty list"),
        (["a", 3], [], "samples.prompts.1: a text or an object is expected, found int"),
        ([{"text": "a"}], [], "no text under `prompt`"),
        ([{"prompt": "a", "reference": 3}], [], "`reference` is 3"),
        (
            [{"prompt": "a", "reference": "b"}, "c"],
            ["samples.metrics=[f1]"],
            "samples.prompts.1 has no `reference`",
        ),
        ("absent.jsonl", [], "absent.jsonl: No such file"),
        ([{"messages": [{"role": "user", "content": "a"}]}], [], "no chat template"),
        ([{"messages": ["a"]}], ["samples.chat_template=chatml"], "samples.prompts.0"),
    ],
)
def test_prompts_that_are_none_are_refused(
    text_data: Path, prompts: Any, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        opened(text_data, *overrides, prompts=prompts)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["samples.prompts=null", "samples.metrics=[f1]"], "no answers to measure"),
        (["train.eval_interval=0"], "answered at validations"),
        (
            ["samples.metrics=[f1]", "samples.every=2", "checkpoint.keep_best={metric: f1, mode: max}"],
            "checkpoint.keep_best.metric f1 is measured at every validation number 2",
        ),
        (["tokenizer.path=null"], "name the tokenizer"),
        (["engine=deepspeed", "precision.dtype=fp32", "parallel.zero_stage=3"], "zero_stage 3"),
        (
            ["model.preset=mixtral-tiny", "parallel.expert_model_parallel_size=2"],
            "expert_model_parallel_size 2",
        ),
        (
            ["model.preset=mixtral-tiny", TP2, "parallel.sequence_parallel=true"],
            "parts of sequences cannot decode",
        ),
        (["samples.metrics=[rouge3]"], "samples.metrics.0"),
    ],
)
def test_what_cannot_generate_is_refused(
    tmp_path: Path, text_data: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sampled(tmp_path, text_data, *overrides)


def test_measures_have_the_names_of_the_configuration() -> None:
    from typing import get_args

    from megalm.config.samples import Metric
    from megalm.evaluate.metrics import TEXT_METRICS

    assert set(get_args(Metric)) == set(TEXT_METRICS)
