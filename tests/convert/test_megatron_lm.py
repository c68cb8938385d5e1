"""Checkpoints of Megatron-Core's own GPTModel, in both of Megatron-LM's forms, become ours and theirs again."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megalm.checkpoint import load_weights, read_config
from megalm.config.schema import ParallelConfig
from megalm.convert.check_megatron import compare_with_library
from megalm.convert.megatron_args import args_of, model_of
from megalm.convert.run import convert
from megalm.convert.source import open_source
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.parallel.layout import Layout, create_layout
from megalm.testing import run_distributed
from megalm.tokenizer.training.train import train_tokenizer
from tests.convert.hub import VOCABULARY, save

PADDED, LENGTH = 136, 24
_COMMON = {
    "num_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "padded_vocab_size": PADDED,
    "vocab_size": VOCABULARY,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "bias_gelu_fusion": False,
}
_GPT: dict[str, Any] = {
    **_COMMON,
    "ffn_hidden_size": 256,
    "kv_channels": 16,
    "normalization": "LayerNorm",
    "add_bias_linear": True,
    "position_embedding_type": "learned_absolute",
}
_LLAMA: dict[str, Any] = {
    **_COMMON,
    "ffn_hidden_size": 96,
    "kv_channels": 24,
    "normalization": "RMSNorm",
    "norm_epsilon": 1e-6,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "qk_layernorm": True,
    "swiglu": True,
    "group_query_attention": True,
    "num_query_groups": 2,
    "position_embedding_type": "rope",
    "rotary_base": 500,
    "untie_embeddings_and_output_weights": True,
}
_MIXTRAL: dict[str, Any] = {
    **_LLAMA,
    "qk_layernorm": False,
    "num_experts": 4,
    "moe_router_topk": 2,
    "moe_ffn_hidden_size": 48,
    "moe_layer_freq": 1,
}
MODELS = {"gpt": _GPT, "llama": _LLAMA, "mixtral": _MIXTRAL}


def megatron_model(args: dict[str, Any], layout: Layout) -> Any:
    """The library's model with its own layers, as Megatron-LM builds it from such arguments."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    experts = args.get("num_experts")
    core = TransformerConfig(
        num_layers=args["num_layers"],
        hidden_size=args["hidden_size"],
        num_attention_heads=args["num_attention_heads"],
        num_query_groups=args.get("num_query_groups", args["num_attention_heads"]),
        kv_channels=args["kv_channels"],
        ffn_hidden_size=args["ffn_hidden_size"],
        normalization=args["normalization"],
        layernorm_epsilon=args.get("norm_epsilon", 1e-5),
        add_bias_linear=args["add_bias_linear"],
        add_qkv_bias=args.get("add_qkv_bias", False),
        qk_layernorm=args.get("qk_layernorm", False),
        gated_linear_unit=args.get("swiglu", False),
        activation_func=torch.nn.functional.silu if args.get("swiglu") else torch.nn.functional.gelu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=layout.tp_size,
        pipeline_model_parallel_size=layout.pp_size,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        num_moe_experts=experts,
        moe_router_topk=args.get("moe_router_topk", 2),
        moe_ffn_hidden_size=args.get("moe_ffn_hidden_size"),
        moe_token_dispatcher_type="allgather",
        moe_router_load_balancing_type="none",
    )
    spec = get_gpt_layer_local_spec(experts, False, core.qk_layernorm, normalization=core.normalization)
    return GPTModel(
        core,
        spec,
        vocab_size=args["padded_vocab_size"],
        max_sequence_length=args["max_position_embeddings"],
        pre_process=layout.is_first_stage,
        post_process=layout.is_last_stage,
        share_embeddings_and_output_weights=not args.get("untie_embeddings_and_output_weights", False),
        position_embedding_type=args["position_embedding_type"],
        rotary_base=args.get("rotary_base", 10000),
        parallel_output=False,
        pg_collection=layout.groups,
    )


def save_both(args: dict[str, Any], folder: Path) -> None:
    """What Megatron-LM writes of a model under TP2 x PP2: a file a rank, and the distributed form."""
    from megatron.core import dist_checkpointing

    layout = create_layout(ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2))
    model = megatron_model(args, layout)
    generator = torch.Generator().manual_seed(layout.rank)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        replicated = not getattr(parameter, "tensor_model_parallel", False)
        if replicated:  # the same on both tensor-parallel ranks
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        parameter.data.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else 0.1 * noise)
    if not args.get("untie_embeddings_and_output_weights"):
        shape = (PADDED // 2, args["hidden_size"])
        table = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(layout.tp_rank))
        if layout.is_first_stage:
            model.embedding.word_embeddings.weight.data.copy_(table)
        else:
            model.output_layer.weight.data.copy_(table)
    arguments = Namespace(
        **args, tensor_model_parallel_size=2, pipeline_model_parallel_size=2, unknown_to_us=Path("x")
    )
    file = folder / "ranks" / "iter_0000007" / f"mp_rank_{layout.tp_rank:02d}_{layout.pp_rank:03d}"
    file.mkdir(parents=True, exist_ok=True)
    state = model.state_dict_for_save_checkpoint()
    content = {"args": arguments, "checkpoint_version": 3.0, "iteration": 7, "model": state}
    torch.save(content, file / "model_optim_rng.pt")
    (folder / "ranks" / "latest_checkpointed_iteration.txt").write_text("7")
    target = folder / "distributed" / "iter_0000007"
    target.mkdir(parents=True, exist_ok=True)
    whole = {"args": arguments, "iteration": 7, **model.sharded_state_dict()}
    dist_checkpointing.save(whole, str(target))
    (folder / "distributed" / "latest_checkpointed_iteration.txt").write_text("7")


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def their_logits(args: dict[str, Any], folder: Path) -> Tensor:
    """Logits of the library's own model that loads the distributed form, with every tensor accounted for."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling

    model = megatron_model(args, create_layout(ParallelConfig())).eval()
    state = dist_checkpointing.load(model.sharded_state_dict(), str(folder), strict=StrictHandling.RAISE_ALL)
    model.load_state_dict({name: state[name] for name in model.state_dict() if name in state}, strict=False)
    length = torch.arange(LENGTH)[None]
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    return model(tokens(), length, mask)[..., :VOCABULARY]


@torch.no_grad()
def our_logits(checkpoint: Path) -> Tensor:
    config = read_config(checkpoint)
    engine = build_engine(config, create_layout(config.parallel), train=False)
    load_weights(engine, checkpoint)
    return engine.model.eval()(tokens())


def rank_state(folder: Path, tp: int, pp: int) -> dict[str, Tensor]:
    path = folder / f"mp_rank_{tp:02d}_{pp:03d}" / "model_optim_rng.pt"
    with torch.serialization.safe_globals([Namespace, type(Path())]):
        content = torch.load(path, weights_only=False)
    return {name: part for name, part in content["model"].items() if isinstance(part, Tensor)}


@pytest.mark.parametrize("name", MODELS)
def test_both_forms_become_the_same_model_and_go_back(name: str, tmp_path: Path) -> None:
    args = MODELS[name]
    run_distributed(partial(save_both, args), 4, tmp_path)
    (expected,) = run_distributed(partial(their_logits, args), 1, tmp_path / "distributed" / "iter_0000007")
    for form in ("ranks", "distributed"):
        report = convert(tmp_path / form, tmp_path / f"ours_{form}")
        assert report["difference"] <= 1e-5 < report["largest_logit"]
        (found,) = run_distributed(our_logits, 1, tmp_path / f"ours_{form}")
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    ours = tmp_path / "ours_ranks"
    report = convert(ours, tmp_path / "back", to="megatron-lm", transformer_impl="local")
    assert report["difference"] <= 1e-5
    unpadded = {**args, "padded_vocab_size": VOCABULARY}
    (again,) = run_distributed(partial(their_logits, unpadded), 1, tmp_path / "back" / "release")
    assert torch.equal(again, expected)

    convert(
        ours,
        tmp_path / "older",
        to="megatron-lm",
        tensor_ranks=2,
        pipeline_ranks=2,
        transformer_impl="local",
    )
    for tp, pp in ((0, 0), (0, 1), (1, 0), (1, 1)):
        theirs = rank_state(tmp_path / "ranks" / "iter_0000007", tp, pp)
        made = rank_state(tmp_path / "older" / "release", tp, pp)
        assert made.keys() == theirs.keys()
        for key, tensor in theirs.items():
            if "embedding.word" not in key and "output_layer" not in key:  # padded otherwise
                assert torch.equal(made[key], tensor), key


def test_older_form_with_names_of_transformer_engine_is_read_again(tmp_path: Path) -> None:
    convert(save("mixtral", tmp_path / "hf"), tmp_path / "ours", compare=False)
    convert(tmp_path / "ours", tmp_path / "theirs", to="megatron-lm", tensor_ranks=2)
    keys = rank_keys(tmp_path / "theirs" / "release" / "mp_rank_00")
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in keys
    assert "decoder.layers.0.pre_mlp_layernorm.weight" in keys  # experts: not fused
    convert(tmp_path / "theirs", tmp_path / "again", vocab_size=VOCABULARY)
    convert(tmp_path / "again", tmp_path / "back", family="mixtral", like=tmp_path / "hf")


def rank_keys(folder: Path) -> set[str]:
    with torch.serialization.safe_globals([Namespace]):
        return set(torch.load(folder / "model_optim_rng.pt", weights_only=True)["model"])


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, VOCABULARY),
        ({"vocab_size": None, "make_vocab_size_divisible_by": 8}, PADDED - 7),
        (
            {"vocab_size": None, "make_vocab_size_divisible_by": 4, "tensor_model_parallel_size": 4},
            PADDED - 15,
        ),
    ],
)
def test_a_vocabulary_that_would_lose_more_than_its_padding_is_refused(
    changes: dict[str, Any], least: int
) -> None:
    args = {**_GPT, **changes}
    assert model_of(args, "here", least).vocab_size == least
    with pytest.raises(UserError, match=f"--vocab-size {least - 1} would cut tokens off.* {least}$"):
        model_of(args, "here", least - 1)


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.target,)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    convert(save("llama3", tmp_path / "hf"), tmp_path / "ours", compare=False)
    convert(tmp_path / "ours", tmp_path / "theirs", to="megatron-lm", tensor_ranks=1)
    file = tmp_path / "theirs" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(file, weights_only=True)
    content["args"].surprise = Evil(tmp_path / "touched")
    content["rng_state"] = [{"random": Evil(tmp_path / "touched")}]
    torch.save(content, file)
    convert(tmp_path / "theirs", tmp_path / "again")
    assert not (tmp_path / "touched").exists()


def test_comparing_finds_other_weights_and_other_arguments(tmp_path: Path) -> None:
    convert(save("llama3", tmp_path / "hf"), tmp_path / "ours", compare=False)
    model = read_config(tmp_path / "ours").model
    assert model.vocab_size is not None
    args = vars(args_of(model, model.vocab_size))
    source = open_source(tmp_path / "ours")
    assert compare_with_library(tmp_path / "ours", args, source, model)["difference"] <= 1e-5
    for changed, said in (
        ({"rotary_base": 20}, "logits differ"),
        (
            {"add_qkv_bias": True},
            "other parameters than the tensors make .decoder.layers.0.self_attention.linear_qkv.bias",
        ),
        ({"ffn_hidden_size": 40}, "layers.0.mlp.linear_fc1.weight of shape .80, "),
    ):
        with pytest.raises(UserError, match=said):
            compare_with_library(tmp_path / "ours", {**args, **changed}, source, model)


def test_mistakes_are_one_line_and_the_tokenizer_comes_back(tmp_path: Path) -> None:
    source = save("llama3", tmp_path / "hf")
    convert(source, tmp_path / "ours", compare=False)
    for arguments, said in (
        ({"to": "megatron"}, "did you mean 'megatron-lm'"),
        ({"to": "megalm"}, "is in the form megalm already"),
        ({"to": "hf", "dtype": "int8"}, "--dtype 'int8' is unknown"),
        ({"to": "hf", "tensor_ranks": 2}, "--tensor-ranks does nothing in a conversion from megalm to hf"),
        ({"to": "megatron-lm", "tensor_ranks": 3}, "num_attention_heads 4 is not a multiple"),
        ({"to": "megatron-lm", "pipeline_ranks": 3}, "num_layers 2 is not a multiple"),
        ({"to": "megatron-lm", "transformer_impl": "te"}, "--transformer-impl 'te' is unknown"),
        ({"to": "hf", "family": "gpt2"}, "a model of gpt2 has no activation swiglu"),
    ):
        with pytest.raises(UserError, match=said):
            convert(tmp_path / "ours", tmp_path / "out", **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="convert it to megalm first"):
        convert(source, tmp_path / "out", to="megatron-lm")
    (tmp_path / "a.txt").write_text("some words")
    train_tokenizer([tmp_path / "a.txt"], tmp_path / "ours" / "tokenizer", "character")
    convert(tmp_path / "ours", tmp_path / "theirs", to="megatron-lm", tensor_ranks=2)
    convert(tmp_path / "theirs", tmp_path / "again", compare=False)
    assert (tmp_path / "again" / "tokenizer" / "tokenizer.json").is_file()
    with pytest.raises(UserError, match="absent: no such tokenizer"):
        convert(tmp_path / "theirs", tmp_path / "out", tokenizer=tmp_path / "absent")
    (tmp_path / "theirs" / "release" / "mp_rank_01" / "model_optim_rng.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match="mp_rank_01/model_optim_rng.pt: not a rank's file"):
        convert(tmp_path / "theirs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
