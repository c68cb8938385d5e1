"""Weights in few bits: torchao's and the paper's numbers, the same by parts as whole, and as small as they should be."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchao.quantization import IntxUnpackedToInt8Tensor, MappingType, NF4Tensor
from torchao.quantization.quant_primitives import choose_qparams_affine, dequantize_affine, quantize_affine

from megalm.config import parse_config
from megalm.errors import UserError
from megalm.model import quantized
from megalm.model.build import build_model
from megalm.model.quantized import QuantizedWeight, WeightForm, round_trip
from megalm.parallel.layout import create_layout
from tests.tiny import tiny_config, tiny_model
from tests.worlds import in_world

FORMS = ("int8", "int4", "nf4")
CPU = torch.device("cpu")


def settings(form: str, group_size: int = 16) -> WeightForm:
    return WeightForm(form, group_size)


def matrix(outputs: int = 12, inputs: int = 64) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("form", "mapping"), [("int8", "SYMMETRIC"), ("int4", "ASYMMETRIC")])
def test_integers_stand_for_what_those_of_torchao_do(form: str, mapping: str) -> None:
    theirs = IntxUnpackedToInt8Tensor.from_hp(
        matrix(), (1, 16), getattr(torch, form), mapping_type=MappingType[mapping]
    )
    ours = QuantizedWeight(12, 64, settings(form), CPU)
    ours.copy_(matrix())
    assert torch.equal(ours.dequantize(), theirs.dequantize())
    x = torch.randn(5, 64)
    torch.testing.assert_close(ours(x), F.linear(x, theirs.dequantize()), rtol=0, atol=0)


def test_normal_floats_are_those_of_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has them to four digits; with these its codes are ours."""
    weight = matrix(64, 256)
    theirs = NF4Tensor.from_tensor(weight, 64, 256)
    torch.testing.assert_close(torch.tensor(quantized.NORMAL_FLOAT), theirs.nf4, rtol=0, atol=5e-5)
    monkeypatch.setattr(quantized, "NORMAL_FLOAT", tuple(theirs.nf4.tolist()))
    monkeypatch.setattr(quantized, "WEIGHTS_AT_A_TIME", 5 * 256)
    ours = QuantizedWeight(64, 256, settings("nf4", 64), CPU)
    ours.copy_(weight)
    assert torch.equal(ours.codes.flatten(), theirs.quantized_data)
    scale = weight.view(64, 4, 64).abs().amax(-1)
    codes = torch.stack([theirs.quantized_data >> 4, theirs.quantized_data & 15], -1).view(64, 4, 64).int()
    assert torch.equal(ours.dequantize(), (theirs.nf4[codes] * scale[..., None]).view(64, 256))


@pytest.mark.parametrize("form", FORMS)
def test_parts_are_quantised_as_the_whole_is(form: str) -> None:
    whole = round_trip(matrix(), settings(form))
    by_columns = [round_trip(part, settings(form)) for part in matrix().split(32, dim=1)]
    by_rows = [round_trip(part, settings(form)) for part in matrix().split(6)]
    assert torch.equal(torch.cat(by_columns, 1), whole)
    assert torch.equal(torch.cat(by_rows), whole)
    assert torch.equal(round_trip(torch.zeros(2, 32), settings(form)), torch.zeros(2, 32))


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_that_of_the_dequantised_weight_and_keeps_none(form: str) -> None:
    weight = QuantizedWeight(12, 64, settings(form), CPU)
    weight.copy_(matrix())
    x = torch.randn(3, 5, 64, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (weight(x) ** 2).sum().backward()
    plain = x.detach().clone().requires_grad_()
    (F.linear(plain, weight.dequantize().double()) ** 2).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, plain.grad)  # type: ignore[arg-type]
    assert not any(t.is_floating_point() and t.shape == (12, 64) for t in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_whole_rows_in_int8_multiply_as_torchaos_numbers(dtype: torch.dtype, tokens: int) -> None:
    """Activations too: by its primitives, with the range that leaves none between two codes."""
    weight, x = matrix(), torch.randn(2, tokens, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    torchaos = IntxUnpackedToInt8Tensor.from_hp(weight, (1, 64), torch.int8)
    theirs = torchaos.qdata.double() * torchaos.scale.double()
    alone = QuantizedWeight(12, 64, WeightForm("int8", None), CPU)
    alone.copy_(weight)
    with torch.no_grad():
        found = alone(x)
    close = {torch.float32: 1e-5, torch.bfloat16: 0.2, torch.float64: 1e-12}[dtype]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), F.linear(x.double(), theirs), rtol=0, atol=close)

    both = QuantizedWeight(12, 64, WeightForm("int8", None, dynamic=True), CPU)
    both.copy_(weight)
    precise = x.float()
    block = (1, 1, 64)
    scale, zero = choose_qparams_affine(precise, MappingType.SYMMETRIC, block, torch.int8, -127, 127)
    codes = quantize_affine(precise, block, scale, zero, torch.int8, -127, 127)
    rounded = dequantize_affine(codes, block, scale, zero, torch.int8, -127, 127).double()
    expected = F.linear(rounded, theirs)
    assert float((expected - F.linear(x.double(), theirs)).abs().max()) > 1e-3
    torch.testing.assert_close(both(x).double(), expected, rtol=0, atol=max(close, 1e-5))
    assert both(x[:, :0]).shape == (2, 0, 12)


def test_stored_int4_in_bf16_is_packed_at_first_use_and_stays_as_close_as_bf16_is() -> None:
    weight, x = matrix(32, 128), torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(1))
    for size in (32, 64):
        for stored in (True, False):
            module = QuantizedWeight(32, 128, WeightForm("int4", size, stored=stored), CPU)
            module.copy_(weight)
            expected = F.linear(x, module.dequantize())
            before = module.codes.clone()
            with torch.no_grad():
                found = module(x.bfloat16()).float()
                torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
                again = module(x[:1].bfloat16()).float()
            torch.testing.assert_close(again, found[:1], rtol=0, atol=0.02)
            # a frozen base's codes stay: training goes on with them
            assert torch.equal(module.codes, before) != stored
            assert module.codes.nbytes == before.nbytes


LARGEST_CODES = """
import torch
from megalm.model.quantized_products import dynamic_int8
codes, scale = torch.full((16, 64), -128, dtype=torch.int8), torch.ones(16, 1)
print(dynamic_int8(torch.full((32, 64), 127.0), codes, scale, None).unique().tolist())
"""


def test_integer_products_are_exact_also_without_the_cpus_own() -> None:
    """Where the CPU has no VNNI, or may not use it, pairs of the largest codes overflow in torch's product."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", LARGEST_CODES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([-128.0 * 127 * 64])


@in_world(2)
def test_rank_holds_no_whole_weight_of_a_linear_layer() -> None:
    """Bytes of this rank's tensors under TP2, in bf16: figures, from 2 bytes a weight down to 8.5, 4.6 and 4.5 bits."""
    sizes = ("model.hidden_size=128", "model.ffn_hidden_size=256", "model.num_query_groups=4")
    common = (*sizes, "precision.dtype=bf16", "parallel.tensor_model_parallel_size=2")
    # of two layers' queries, keys and values, output, gate and up, down, each cut in two
    weights = 2 * (3 * 128 * 128 + 128 * 128 + 2 * 256 * 128 + 256 * 128) // 2
    whole = held(tiny_model(tiny_config("llama-tiny", *common, "lora.rank=1", "run.load=unused")))
    for form, bits in (("int8", 8 + 32 / 64), ("int4", 4 + 40 / 64), ("nf4", 4 + 32 / 64)):
        config = tiny_config(
            "llama-tiny", *common, "lora.rank=1", "run.load=unused", f"lora.quantize_base={form}"
        )
        layout = create_layout(config.parallel)
        model = build_model(config, layout)
        values = 8 * 16 * 4 if form == "nf4" else 0  # each of the eight layers' sixteen values
        assert whole - held(model) == weights * (2 - bits / 8) - values


def held(model: torch.nn.Module) -> int:
    """Bytes of memory of all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors if not tensor.is_meta)


def refused(*overrides: str) -> str:
    sections = {"lora": {"rank": 4, "quantize_base": "nf4"}, "run": {"load": "base"}}
    with pytest.raises(UserError) as error:
        parse_config({"model": {"preset": "llama-7b", "vocab_size": 512}, **sections}, overrides)
    return str(error.value)


def test_groups_that_reach_over_ranks_are_refused() -> None:
    tp = "parallel.tensor_model_parallel_size=8"
    assert "a rank's part of 11008 / tensor_model_parallel_size 8) 1376 is not a multiple of" in refused(tp)
    assert "lora.quantize_group_size 64: 1376 / 64 = 21.5" in refused(tp)
    assert "take engine=megatron" in refused("engine=deepspeed")
    assert "weights that are trained are not quantised" in refused("lora.rank=0")
    parse_config(
        {"model": {"preset": "llama-7b"}, "lora": {"rank": 4, "quantize_base": "nf4"}, "run": {"load": "b"}},
        [tp, "lora.quantize_group_size=32"],
    )
