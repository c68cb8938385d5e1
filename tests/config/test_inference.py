"""A trained model's configuration keeps what the model is, and nothing of how it was trained stands in the way of its use."""

import pytest

from megalm.config import parse_config
from megalm.config.checks import check
from megalm.config.inference import for_inference
from megalm.config.schema import Config, ParallelConfig
from megalm.errors import UserError

MODEL = {"preset": "llama-tiny", "vocab_size": 100}
TRAINED = {
    "recompute": {"train": {"recompute": {"granularity": "full", "num_layers": 2}}},
    "engine": {"engine": "deepspeed"},
    "offload": {"engine": "deepspeed", "parallel": {"zero_stage": 1}, "offload": {"optimizer": "cpu"}},
    "sft.packing": {"task": "sft", "sft": {"packing": False}},
}


@pytest.mark.parametrize("section", TRAINED)
def test_what_a_training_had_does_not_bind_the_use_of_its_model(section: str) -> None:
    settings = TRAINED[section]
    trained = parse_config({"model": MODEL, **settings})
    pipeline = ParallelConfig(pipeline_model_parallel_size=2)
    naive = trained.model_copy(update={"parallel": pipeline, "task": "pretrain"})
    with pytest.raises(UserError):
        check(naive)
    check(for_inference(trained, pipeline, "fp32"))


def test_model_adapters_tokenizer_and_samples_stay() -> None:
    trained = parse_config(
        {
            "run": {"load": "base", "seed": 7},
            "model": MODEL,
            "lora": {"rank": 4},
            "tokenizer": {"path": "tokenizer"},
            "data": {"train": [{"path": "a"}], "reset_at_document_end": True},
            "batch": {"seq_length": 64},
            "optimizer": {"lr": 1.0},
            "precision": {"dtype": "bf16", "fp8": "none"},
        }
    )
    found = for_inference(trained, ParallelConfig(tensor_model_parallel_size=2), "fp64")
    kept = ("run", "model", "lora", "tokenizer", "data", "batch", "classify")
    assert all(getattr(found, name) == getattr(trained, name) for name in kept)
    assert found.parallel.tensor_model_parallel_size == 2 and found.precision.dtype == "fp64"
    assert found.optimizer == Config().optimizer and found.task == "pretrain"
    found.model.vocab_size = 1
    assert trained.model.vocab_size == 100


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        ({"task": "classify", "model": {**MODEL, "sequence_head": {"outputs": 2}}}, "classify"),
        ({"task": "mlm", "model": {"preset": "bert-tiny"}, "batch": {"seq_length": 64}}, "mlm"),
    ],
)
def test_a_model_keeps_the_task_of_its_kind(settings: dict[str, object], task: str) -> None:
    found = for_inference(parse_config(settings), ParallelConfig(), "fp32")
    assert found.task == task
    check(found)
