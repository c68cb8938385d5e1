"""Adapters on a quantised base train alike under every layout, and as on the base that its codes stand for."""

import pytest
import torch

from megalm.model.quantized import WeightForm, form_of_base, is_linear_weight, round_trip
from megalm.train.pretrain import NextTokenLoss
from tests.parity.runs import FP64, assert_same_run, load_drawn_base, run
from tests.parity.test_lora import comparable
from tests.tiny import LR, tiny_config, tiny_engine, tiny_microbatches
from tests.worlds import in_world

TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
EP2 = "parallel.expert_model_parallel_size=2"
LORA = ("lora.rank=4", "lora.alpha=100", "run.load=unused", "lora.quantize_group_size=8")
EXPERTS = "lora.experts=true"
RECOMPUTED = "train.recompute.granularity=full"
CASES: dict[str, tuple[int, str, tuple[str, ...], tuple[str, ...]]] = {
    "int8, TP2": (2, "gpt2-tiny", ("lora.quantize_base=int8",), (TP2,)),
    "int4, TP2xPP2+SP": (4, "llama-tiny", ("lora.quantize_base=int4",), (TP2, SP, PP2)),
    "int4, DP2, recomputed": (2, "llama-tiny", ("lora.quantize_base=int4",), (RECOMPUTED,)),
    "nf4, CP2": (2, "llama-tiny", ("lora.quantize_base=nf4",), ("parallel.context_parallel_size=2",)),
    "nf4, EP2xTP2": (4, "mixtral-tiny", ("lora.quantize_base=nf4", EXPERTS), (EP2, TP2)),
}


@pytest.mark.parametrize("case", CASES)
def test_adapters_on_a_quantised_base_train_as_in_one_process(case: str) -> None:
    world_size, preset, quantized, layout = CASES[case]
    found = run(world_size, preset, (*LORA, *quantized, *layout))
    assert_same_run(comparable(found), comparable(run(1, preset, (*LORA, *quantized))), FP64)


@in_world(1)
def test_adapters_train_as_beside_the_dequantised_base() -> None:
    """Plain linear layers on what the codes stand for: their gradients are torch's own."""
    for form in ("int8", "int4", "nf4"):
        config = tiny_config("llama-tiny", *LORA, f"lora.quantize_base={form}")
        plain = tiny_config("llama-tiny", *LORA)
        quantized, dequantized = tiny_engine(config), tiny_engine(plain)

        form = form_of_base(config.lora)
        assert form is not None

        def through(name: str, weight: torch.Tensor, form: WeightForm = form) -> torch.Tensor:
            return round_trip(weight, form).double() if is_linear_weight(name) else weight

        load_drawn_base(quantized, config)
        load_drawn_base(dequantized, plain, through)
        for step in range(3):
            results = [
                engine.step(tiny_microbatches(step, engine.layout), NextTokenLoss(), LR)
                for engine in (quantized, dequantized)
            ]
            assert results[0].loss == pytest.approx(results[1].loss, rel=1e-13)
            assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-12)
        states = [engine.state() for engine in (quantized, dequantized)]
        assert states[0].keys() == states[1].keys()
        for name, shard in states[0].items():
            torch.testing.assert_close(shard.data, states[1][name].data, rtol=1e-9, atol=1e-13)
