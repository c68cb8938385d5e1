"""An engine that nobody holds any more gives its memory and its process groups back."""

import gc
import weakref

import pytest

from tests.parity.runs import TASKS
from tests.tiny import LR, MICRO_BATCH, tiny_config, tiny_engine, to_microbatches
from tests.worlds import in_world

ENGINES = {
    "TP": ("gpt2-tiny", "parallel.tensor_model_parallel_size=2"),
    "PP": (
        "llama-tiny",
        "model.num_layers=4",
        "parallel.pipeline_model_parallel_size=2",
        "parallel.virtual_pipeline_model_parallel_size=2",
    ),
    "CP": ("llama-tiny", "parallel.context_parallel_size=2"),
    "ZeRO-1": ("llama-tiny", "precision.dtype=bf16", "parallel.zero_stage=1"),
    "recompute": (
        "llama-tiny",
        "train.recompute.granularity=selective",
        "train.recompute.modules=[layernorm,mlp]",
    ),
    "experts": ("mixtral-tiny", "model.moe.shared_expert_ffn_hidden_size=48"),
    "EP, recompute": (
        "mixtral-tiny",
        "parallel.expert_model_parallel_size=2",
        "train.recompute.granularity=selective",
        "train.recompute.modules=[moe]",
    ),
    "experts under TP": ("mixtral-tiny", "parallel.tensor_model_parallel_size=2"),
    "BERT": ("bert-tiny", "task=mlm", "parallel.tensor_model_parallel_size=2"),
} | {
    f"DeepSpeed, ZeRO-{stage}": (
        "gpt2-tiny",
        "precision.dtype=fp32",
        "engine=deepspeed",
        f"parallel.zero_stage={stage}",
    )
    for stage in range(4)
}


@pytest.mark.parametrize("kind", ENGINES)
@in_world(2)
def test_an_engine_that_nobody_holds_is_freed(kind: str) -> None:
    """What holds its model is more than Python sees: hooks of parameters, graphs, lists of the libraries."""
    preset, *overrides = ENGINES[kind]
    config = tiny_config(preset, *overrides)
    batch, loss = TASKS[config.task]
    engine = tiny_engine(config)
    for step in range(2):
        engine.step(to_microbatches(batch(step, False), engine.layout, MICRO_BATCH), loss, LR)
    engine.state()
    models = [weakref.ref(chunk) for chunk in engine.chunks]
    del engine
    gc.collect()
    assert not any(model() for model in models)
