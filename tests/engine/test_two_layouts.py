"""Two engines of different layouts in one process, step about, do what each of them does alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megalm.engine.base import Engine
from megalm.engine.build import build_engine
from megalm.generate.decode import Generator
from megalm.generate.request import GenerationOptions
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.train.pretrain import NextTokenLoss
from tests.tiny import LR, random_tokens, tiny_config, tiny_microbatches

TP2 = "parallel.tensor_model_parallel_size=2"
PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
CP2 = "parallel.context_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
ZERO1 = "parallel.zero_stage=1"
DEEPSPEED = "engine=deepspeed"
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
STEPS = 3

Spec = tuple[str, tuple[str, ...]]
"""A preset and overrides."""

PAIRS: dict[str, tuple[Spec, Spec]] = {
    "TP2xDP2 and TP1xDP4 with ZeRO-1": (("llama-tiny", (TP2, *DROPOUT)), ("llama-tiny", (ZERO1, *DROPOUT))),
    "interleaved PP2xDP2 and TP2+SPxDP2": (
        ("llama-tiny", (PP2, VP2, "model.num_layers=4")),
        ("gpt2-tiny", (TP2, SP, *DROPOUT)),
    ),
    "CP2xDP2 and TP2xPP2": (("llama-tiny", (CP2,)), ("llama-tiny", (TP2, PP2))),
    "experts over DP4 and TP2xDP2": (("mixtral-tiny", (EP2,)), ("mixtral-tiny", (TP2,))),
    "DeepSpeed ZeRO-2 and TP2xDP2": (
        ("llama-tiny", (DEEPSPEED, "parallel.zero_stage=2")),
        ("llama-tiny", (TP2,)),
    ),
    "DeepSpeed TP2xDP2 and DeepSpeed ZeRO-3": (
        ("llama-tiny", (DEEPSPEED, TP2)),
        ("llama-tiny", (DEEPSPEED, "parallel.zero_stage=3")),
    ),
}


def build(*specs: Spec) -> list[Engine]:
    """Engines, made when the layouts of all of them are there."""
    configs = [tiny_config(preset, "precision.dtype=fp32", *overrides) for preset, overrides in specs]
    layouts = [create_layout(config.parallel) for config in configs]
    return [build_engine(config, layout) for config, layout in zip(configs, layouts, strict=True)]


def act(engine: Engine, step: int) -> list[Any]:
    """A step and a validation, as exact figures."""
    result = engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
    sums, weights = engine.evaluate(tiny_microbatches(99, engine.layout), NextTokenLoss())
    return [result.loss, result.grad_norm, result.more, sums.tolist(), weights.tolist()]


def step_about(specs: tuple[Spec, Spec]) -> list[list[Any]]:
    """What both do, a step each at a time."""
    engines = build(*specs)
    done: list[list[Any]] = [[], []]
    for step in range(STEPS):
        for engine, figures in zip(engines, done, strict=True):
            figures.append(act(engine, step))
    return done


def alone(spec: Spec) -> list[Any]:
    (engine,) = build(spec)
    return [act(engine, step) for step in range(STEPS)]


@pytest.mark.parametrize("pair", PAIRS)
def test_engines_of_two_layouts_train_and_validate_as_each_does_alone(pair: str) -> None:
    together = run_distributed(step_about, 4, PAIRS[pair])
    apart = [run_distributed(alone, 4, spec) for spec in PAIRS[pair]]
    for rank, both in enumerate(together):
        for mine, theirs in zip(both, apart, strict=True):
            assert mine == theirs[rank]


def without_globals(act: Callable[[], Any]) -> Any:
    """Run with nothing in the library's own variables, so that whatever reads them fails."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    try:
        return act()
    finally:
        assert not parallel_state.is_initialized()


def decode_beside_another_layout() -> tuple[list[list[int]], list[list[int]]]:
    (engine,) = build(("llama-tiny", (TP2, PP2)))
    generator = Generator(engine.chunks, engine.layout, 64)  # type: ignore[arg-type]
    prompts = random_tokens(3, 8).tolist()
    options = GenerationOptions(max_new_tokens=8, seed=1)

    def decode() -> list[list[int]]:
        generator.forget()
        return [completion.tokens for completion in generator.generate(prompts, options)]

    before = decode()
    create_layout(tiny_config().parallel)
    with torch.no_grad():
        return before, without_globals(decode)


def test_decoding_does_not_depend_on_the_layout_made_last() -> None:
    for before, after in run_distributed(decode_beside_another_layout, 4):
        assert before == after
