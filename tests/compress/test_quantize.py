"""Quantised checkpoints hold torchao's numbers, compute as Hugging Face's model on them, under any layout, and are refused where
they cannot be used."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torchao.quantization import IntxUnpackedToInt8Tensor, MappingType

from megalm.checkpoint import load_weights, read_config
from megalm.checkpoint.inspect import inspect_checkpoint
from megalm.checkpoint.metadata import read_tensors
from megalm.compress.measure import stored_bytes
from megalm.compress.quantize import quantize_checkpoint
from megalm.config import parse_config
from megalm.config.checks import check
from megalm.convert.merge import merge_checkpoints
from megalm.convert.run import convert
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.parallel.layout import create_layout
from megalm.testing import run_distributed
from megalm.train.run import main as train
from tests.compress.models import hub_logits, hub_model, loss, make_base, our_engine, our_logits
from tests.tiny import tiny_config, tiny_engine

HEAD = ("task=classify", "model.sequence_head.outputs=3")
INTEGERS: list[tuple[str, int | None]] = [("int8", None), ("int8", 16), ("int4", 16), ("int4", None)]


def linear_layers(model: Any) -> list[torch.nn.Linear]:
    return [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]


@torch.no_grad()
def with_torchaos_weights(model: Any, method: str, group_size: int | None) -> Any:
    """The model with each linear layer's weight replaced by what torchao's codes of it stand for."""
    mapping = MappingType.SYMMETRIC if method == "int8" else MappingType.ASYMMETRIC
    default = None if method == "int8" else 32
    for layer in linear_layers(model):
        size = group_size or default or layer.in_features
        theirs = IntxUnpackedToInt8Tensor.from_hp(
            layer.weight, (1, size), getattr(torch, method), mapping_type=mapping
        )
        layer.weight = torch.nn.Parameter(theirs.dequantize())
    return model


@pytest.mark.parametrize(("method", "group_size"), INTEGERS)
def test_logits_and_export_are_those_of_torchaos_dequantised_weights(
    base: Path, tmp_path: Path, method: str, group_size: int | None
) -> None:
    quantize_checkpoint(base / "base", tmp_path / "small", method, group_size)
    theirs = with_torchaos_weights(hub_model(base / "hf"), method, group_size)
    expected = hub_logits(theirs)
    assert float((hub_logits(hub_model(base / "hf")) - expected).abs().max()) > 0.01  # it does something
    torch.testing.assert_close(our_logits(tmp_path / "small"), expected, rtol=0, atol=2e-5)
    report = convert(tmp_path / "small", tmp_path / "exported")
    assert report["difference"] < 2e-5
    exported = hub_model(tmp_path / "exported").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(exported[name], tensor), name


@pytest.mark.parametrize(("name", "method"), [("mixtral", "int4"), ("gpt2", "int8")])
def test_experts_and_layers_with_biases_are_exported_as_they_compute(
    tmp_path: Path, name: str, method: str
) -> None:
    make_base(tmp_path, name, layers=2)
    quantize_checkpoint(tmp_path / "base", tmp_path / "small", method)
    convert(tmp_path / "small", tmp_path / "exported")
    found = our_logits(tmp_path / "small")
    torch.testing.assert_close(found, hub_logits(hub_model(tmp_path / "exported")), rtol=0, atol=2e-5)
    assert float((found - hub_logits(hub_model(tmp_path / "hf"))).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("method", "group_size"), [("int8", None), ("int8", 16), ("int4", 16), ("int8_dynamic", None)]
)
def test_layouts_compute_what_one_process_does(
    base: Path, tmp_path: Path, method: str, group_size: int | None
) -> None:
    small = tmp_path / "small"
    quantize_checkpoint(base / "base", small, method, group_size)
    (alone,) = run_distributed(loss, 1, small, base, "fp64", 1, 1)
    for tp, pp in ((2, 1), (1, 2)):
        found = run_distributed(loss, 2, small, base, "fp64", tp, pp)
        assert found == pytest.approx([alone, alone], rel=1e-12, abs=0)


def test_quantised_experts_compute_alike_under_tensor_parallelism(tmp_path: Path) -> None:
    make_base(tmp_path, "mixtral", layers=2)
    quantize_checkpoint(tmp_path / "base", tmp_path / "small", "int8_dynamic")
    (alone,) = run_distributed(loss, 1, tmp_path / "small", tmp_path, "fp64", 1, 1)
    found = run_distributed(loss, 2, tmp_path / "small", tmp_path, "fp64", 2, 1)
    assert found == pytest.approx([alone, alone], rel=1e-12, abs=0)


def test_exports_in_bf16_are_compared_as_they_were_written(base: Path, tmp_path: Path) -> None:
    """Also of a model that is stored in bf16, whose codes stand for weights in fp32."""
    quantize_checkpoint(base / "base", tmp_path / "small", "int4")
    assert convert(tmp_path / "small", tmp_path / "exported", dtype="bf16")["difference"] < 2e-5
    weights = hub_model(tmp_path / "exported", None).state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    quantize_checkpoint(base / "base", tmp_path / "half", "bf16")
    quantize_checkpoint(tmp_path / "half", tmp_path / "small_half", "int8")
    assert convert(tmp_path / "small_half", tmp_path / "exported_half")["difference"] < 2e-5


def test_half_precision_and_codes_are_as_small_as_they_should_be(base: Path, tmp_path: Path) -> None:
    weights = 4 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96)  # of four layers' linear layers
    whole = stored_bytes(base / "base")
    sizes = {"bf16": whole / 2}
    rows = 4 * (64 + 2 * 32 + 64 + 2 * 96 + 64)
    sizes["int8"] = whole - 3 * weights + 4 * rows
    sizes["int4"] = whole - 3.5 * weights + 5 * weights / 32
    for method, expected in sizes.items():
        quantize_checkpoint(base / "base", tmp_path / method, method)
        assert stored_bytes(tmp_path / method) == expected
        counts = [inspect_checkpoint(folder)["weights"] for folder in (base / "base", tmp_path / method)]
        assert counts[0] == counts[1]
    assert read_config(tmp_path / "bf16").precision.dtype == "bf16"


def test_bf16_keeps_the_loss(base: Path, tmp_path: Path) -> None:
    quantize_checkpoint(base / "base", tmp_path / "half", "bf16")
    whole = loss(base / "base", base, "fp32", 1, 1)
    assert loss(tmp_path / "half", base, "fp32", 1, 1) == pytest.approx(whole, rel=2e-3)
    assert loss(tmp_path / "half", base, "bf16", 1, 1) == pytest.approx(whole, rel=1e-2)


def test_fp8_codes_are_torchs_and_are_read_anywhere(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Whole rows of e4m3 with the scale that takes the largest weight to 448; a CPU reads them, but does not multiply them."""
    monkeypatch.setattr("megalm.compress.quantize.check_fp8", lambda device: None)
    quantize_checkpoint(base / "base", tmp_path / "small", "fp8")
    theirs = hub_model(base / "hf")
    for layer in linear_layers(theirs):
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 448
        rounded = (layer.weight.detach() / scale).to(torch.float8_e4m3fn).float() * scale
        layer.weight = torch.nn.Parameter(rounded)
    convert(tmp_path / "small", tmp_path / "exported")
    exported = hub_model(tmp_path / "exported").state_dict()
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(exported[name], tensor, rtol=1e-6, atol=0)
    with pytest.raises(UserError, match="fp8 needs a GPU of compute capability 9.0"):
        our_engine(tmp_path / "small")


def test_encoders_and_classifiers_compute_with_the_codes(tmp_path: Path) -> None:
    """As the dequantised model does; the head stays whole."""
    from megalm.checkpoint import CheckpointWriter

    for preset in ("llama-tiny", "bert-tiny"):
        config = tiny_config(preset, *HEAD, "checkpoint.async_save=false")
        run = tmp_path / preset
        engine = tiny_engine(config)
        CheckpointWriter(run, config, engine).save(1, {"step": 1, "counters": engine.counters})
        quantize_checkpoint(run, run / "small", "int4", 8)
        merge_checkpoints([run / "small"], run / "whole")
        assert not any(".quantized." in name for name in read_tensors(run / "whole"))
        outputs = []
        for name in ("small", "whole"):
            model = our_engine(run / name, "fp64").model.eval()
            ids = torch.arange(24).view(2, 12)
            with torch.no_grad():
                outputs.append(model(ids, loss_mask=torch.ones(2, 12)))
        assert outputs[0].shape == (2, 3)
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-12, atol=1e-12)


def test_megalm_classify_answers_from_codes_as_from_what_they_stand_for(base: Path, tmp_path: Path) -> None:
    from megalm.checkpoint import CheckpointWriter
    from megalm.generate.classify import main as classify
    from megalm.generate.request import ClassifyRequest

    config = tiny_config("llama-tiny", *HEAD, "checkpoint.async_save=false", "model.init_method_std=0.2")
    config.classify.labels = ["good", "bad", "neither"]
    shutil.copytree(base / "base" / "tokenizer", tmp_path / "run" / "tokenizer")
    engine = tiny_engine(config)
    CheckpointWriter(tmp_path / "run", config, engine).save(1, {"step": 1, "counters": engine.counters})
    quantize_checkpoint(tmp_path / "run", tmp_path / "small", "int8")
    merge_checkpoints([tmp_path / "small"], tmp_path / "whole")
    found = []
    for name in ("run", "small", "whole"):
        request = ClassifyRequest(
            checkpoint=str(tmp_path / name), texts=[("the end",), ("of line 3",)], dtype="fp64"
        )
        predictions = classify(request)["predictions"]
        found.append([list(one["probabilities"].values()) for one in predictions])
    assert found[1][0] == pytest.approx(found[2][0], rel=1e-6)
    assert found[1][1] == pytest.approx(found[2][1], rel=1e-6)
    assert found[1][0] != pytest.approx(found[0][0], rel=1e-5)


def refused(act: Any) -> str:
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_is_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    source, small = base / "base", tmp_path / "small"
    assert "64 / 48" in refused(lambda: quantize_checkpoint(source, small, "int4", 48))
    assert "int8" in refused(lambda: quantize_checkpoint(source, small, "int9"))
    assert "groups are for" in refused(lambda: quantize_checkpoint(source, small, "int8_dynamic", 16))
    assert "even number" in refused(lambda: quantize_checkpoint(source, small, "int4", 3))
    assert "fp8 needs a GPU" in refused(lambda: quantize_checkpoint(source, small, "fp8"))
    assert not small.exists()
    quantize_checkpoint(source, small, "int8", 32)
    assert "quantise last" in refused(lambda: quantize_checkpoint(small, tmp_path / "again", "int4"))
    config = read_config(small)
    config.parallel.tensor_model_parallel_size = 2
    assert "quantization.group_size 32: 48 / 32" in refused(lambda: check(config))


def test_training_on_codes_is_refused_with_the_way_out(base: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    quantize_checkpoint(base / "base", small, "int8")
    model = read_config(small).model.model_dump(mode="json")
    plain = parse_config({"model": model})
    engine = build_engine(plain, create_layout(plain.parallel), train=False)
    assert f"megalm merge {small} DEST" in refused(lambda: load_weights(engine, small))
    quantized = parse_config({"model": model, "quantization": {"method": "int8"}})
    assert "not quantised" in refused(lambda: train(quantized))
    lora = {"lora": {"rank": 2}, "run": {"load": str(small)}}
    sections = {"model": model, "quantization": {"method": "int8"}, **lora}
    assert "megalm merge" in refused(lambda: parse_config(sections))
    merge_checkpoints([small], tmp_path / "whole")
    load_weights(engine, tmp_path / "whole")
