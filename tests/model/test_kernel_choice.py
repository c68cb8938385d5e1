"""A kernel by name that cannot be used here, or not for this model, is refused in one line that says what to take."""

from dataclasses import replace

import pytest
import torch

from megalm import kernels
from megalm.config import Config, parse_config
from megalm.errors import UserError
from megalm.model.kernel_choice import COMPILER, NEEDS, check_kernels, without_unusable


def named(field: str, name: str, *overrides: str) -> Config:
    return parse_config({"model": {"preset": "llama-tiny"}}, [f"{field}={name}", *overrides])


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU node with every package: none of them is called."""
    found = {name: replace(kernel, problem="") for name, kernel in kernels.detect().items()}
    monkeypatch.setattr(kernels, "detect", lambda: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.mark.parametrize(("field", "name"), [key for key in NEEDS if NEEDS[key].package != COMPILER])
def test_a_package_that_is_not_here_is_named_and_so_is_the_way_out(field: str, name: str) -> None:
    kernel = kernels.detect()[NEEDS[field, name].package]
    if kernel.usable:
        pytest.skip(f"{kernel.name} can be used here")
    with pytest.raises(UserError) as caught:
        check_kernels(named(field, name, "model.activation=swiglu"))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{field} is `{name}`, but {kernel.name}")
    assert message.endswith((": take `auto`", ": take `none`"))


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels, "cxx_compiler", lambda: kernels.CXX)
    with pytest.raises(
        UserError, match=r"train\.compile is `blocks`, but c\+\+ cannot be used here .*: take `none`"
    ):
        check_kernels(named("train.compile", "blocks"))


@pytest.mark.parametrize(
    ("field", "name", "overrides", "reason"),
    [
        ("model.attention", "flash", (), "precision.dtype is fp32"),
        ("model.attention", "te", ("model.position_embedding=alibi",), "takes no bias"),
        ("model.attention", "flash", ("model.kv_channels=260",), "up to 256, and here it is 260"),
        ("model.activation_kernel", "liger", ("model.activation=geglu",), "model.activation is geglu"),
        ("model.cross_entropy", "liger", ("parallel.tensor_model_parallel_size=2",), "TP is 2"),
        ("model.norm", "te", ("precision.dtype=fp64",), "precision.dtype is fp64"),
        ("precision.fp8", "hybrid", ("precision.dtype=fp32",), "precision.dtype is fp32"),
        ("train.compile", "blocks", ("engine=deepspeed",), "engine `deepspeed` does not offer it"),
        ("optimizer.kernel", "foreach", ("engine=deepspeed",), "engine `deepspeed` does not offer it"),
        ("precision.fp8", "hybrid", ("model.moe.num_experts=4",), "experts are not made for it"),
        ("model.norm", "te", ("model.architecture=bert",), "architecture `bert` does not offer it"),
        ("precision.fp8", "e4m3", ("model.ffn_hidden_size=100",), "ffn_hidden_size / TP is 100"),
        (
            "precision.fp8",
            "e4m3",
            ("batch.seq_length=48", "parallel.context_parallel_size=2"),
            "tokens of a microbatch / CP is 24",
        ),
        ("model.attention", "flash", ("model.architecture=bert",), "architecture `bert` does not offer it"),
        ("model.attention", "matmul", ("model.architecture=bert",), "architecture `bert` does not offer it"),
        ("model.cross_entropy", "plain", ("model.architecture=bert",), "`bert` does not offer it"),
        ("model.attention", "matmul", ("model.attention_dropout=0.1",), "model.attention_dropout is 0.1"),
        ("model.attention", "te", ("data.reset_at_document_end=true",), "takes no mask"),
        ("model.attention", "matmul", ("data.reset_at_document_end=true",), "takes no mask"),
        ("model.attention", "te", ("data.packing=cut",), "takes no mask, which data.packing makes"),
        (
            "model.attention",
            "flash",
            ("data.reset_at_document_end=true", "parallel.context_parallel_size=2"),
            "takes no mask",
        ),
        ("model.activation_kernel", "liger", ("model.moe.num_experts=4",), "every layer has experts"),
    ],
)
@pytest.mark.usefixtures("everything_installed")
def test_a_kernel_that_is_not_made_for_the_model_is_refused(
    field: str, name: str, overrides: tuple[str, ...], reason: str
) -> None:
    config = named(field, name, *(() if "dtype is fp32" in reason else ("precision.dtype=bf16",)), *overrides)
    with pytest.raises(UserError, match=reason) as caught:
        check_kernels(config)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("everything_installed")
def test_documents_and_layers_between_experts_have_their_kernels() -> None:
    check_kernels(
        named("model.attention", "flash", "precision.dtype=bf16", "data.reset_at_document_end=true")
    )
    between = ("model.moe.num_experts=4", "model.moe.layer_frequency=2")
    check_kernels(named("model.activation_kernel", "liger", *between))


@pytest.mark.parametrize(("field", "name"), NEEDS)
@pytest.mark.usefixtures("everything_installed")
def test_every_kernel_is_taken_where_everything_is_there(field: str, name: str) -> None:
    check_kernels(named(field, name, "precision.dtype=bf16"))


def test_defaults_ask_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> None:
        raise AssertionError("packages were looked for")

    monkeypatch.setattr(kernels, "detect", never)
    check_kernels(parse_config({}))


def test_exchange_that_gloo_has_not_is_refused() -> None:
    setting = (
        "model.moe.num_experts=4",
        "model.add_bias_linear=false",
        "parallel.tensor_model_parallel_size=2",
        "parallel.sequence_parallel=true",
        "parallel.backend=gloo",
    )
    config = named("model.moe.dispatcher", "alltoall", *setting)
    with pytest.raises(UserError, match="which the backend gloo does not: take `allgather`"):
        check_kernels(config)
    check_kernels(config, here=False)


def test_what_another_machine_may_have_is_not_refused_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {name: replace(kernel, problem="not there") for name, kernel in kernels.detect().items()}
    monkeypatch.setattr(kernels, "detect", lambda: absent)
    flash = named("model.attention", "flash", "precision.dtype=bf16")
    check_kernels(flash, here=False)
    with pytest.raises(UserError, match="not there"):
        check_kernels(flash)
    with pytest.raises(UserError, match=r"precision\.dtype is fp32"):
        check_kernels(named("model.attention", "flash"), here=False)


def test_weights_trained_elsewhere_run_with_what_is_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("kernels may be usable here")
    config = named(
        "model.attention", "flash", "model.norm=te", "model.rope_kernel=plain", "precision.fp8=hybrid"
    )
    found = without_unusable(config)
    assert (found.model.attention, found.model.norm, found.precision.fp8) == ("auto", "auto", "none")
    assert found.model.rope_kernel == "plain"
    assert config.model.attention == "flash"
