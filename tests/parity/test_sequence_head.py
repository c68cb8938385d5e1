"""Heads for whole samples equal Hugging Face's, and train under every layout as in one process; fp64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from megalm.config import Config
from tests.parity.hf_bert_weights import from_bert, load
from tests.parity.hf_weights import from_gpt2, from_llama
from tests.parity.runs import FP32, FP64, assert_same_run, run
from tests.parity.test_hugging_face import randomize, tensors
from tests.tiny import tiny_config, tiny_model
from tests.worlds import in_world

VOCABULARY, LENGTH, CLASSES = 131, 24, 3
LENGTHS = torch.tensor([LENGTH, 9, 1, 17])
TASK = ("task=classify", f"model.sequence_head.outputs={CLASSES}")


def config_of(preset: str) -> Config:
    sizes = (f"model.vocab_size={VOCABULARY}", f"model.max_sequence_length={LENGTH}")
    return tiny_config(preset, *TASK, f"batch.seq_length={LENGTH}", *sizes)


def hugging_face(preset: str, config: Config) -> torch.nn.Module:
    model = config.model
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "num_labels": CLASSES,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }
    sizes = {
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "intermediate_size": model.ffn_size,
        "max_position_embeddings": LENGTH,
    }
    if preset == "gpt2-tiny":
        settings = GPT2Config(
            n_embd=model.hidden_size,
            n_layer=model.num_layers,
            n_head=model.num_attention_heads,
            n_inner=model.ffn_size,
            n_positions=LENGTH,
            layer_norm_epsilon=model.layernorm_epsilon,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **common,
        )
        hf: torch.nn.Module = GPT2ForSequenceClassification(settings)
    elif preset == "llama-tiny":
        norm = {"rms_norm_eps": model.layernorm_epsilon, "rope_theta": model.rope_theta}
        groups = {"num_key_value_heads": model.query_groups, "head_dim": model.head_dim}
        hf = LlamaForSequenceClassification(LlamaConfig(**sizes, **norm, **groups, **common))
    else:
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        epsilon = {"layer_norm_eps": model.layernorm_epsilon}
        hf = BertForSequenceClassification(BertConfig(**sizes, **dropout, **epsilon, **common))
    hf = hf.double()
    randomize(hf)
    return hf


def translated(preset: str, hf: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Their tensors under our names; decoders of theirs have no bias in the head."""
    zero = torch.zeros(CLASSES, dtype=torch.float64)
    if preset == "bert-tiny":
        hf["cls.predictions.bias"] = zero
        missing = ("predictions.transform.dense", "predictions.transform.LayerNorm", "seq_relationship")
        hf |= {f"cls.{name}.{kind}": zero for name in missing for kind in ("weight", "bias")}
        ours = from_bert(hf, config.model)
        ours = {n: t for n, t in ours.items() if not n.startswith(("lm_head", "output_layer", "binary_head"))}
        head = {kind: hf[f"classifier.{kind}"] for kind in ("weight", "bias")}
    else:
        translate = from_gpt2 if preset == "gpt2-tiny" else from_llama
        ours = translate(hf | {"lm_head.weight": zero}, config.model)
        ours.pop("output_layer.weight", None)
        head = {"weight": hf["score.weight"], "bias": zero}
    return ours | {f"sequence_head.output.{kind}": tensor for kind, tensor in head.items()}


@pytest.mark.parametrize("preset", ["gpt2-tiny", "llama-tiny", "bert-tiny"])
@in_world(1)
def test_head_equals_hugging_face(preset: str) -> None:
    from megalm.model.state import ForwardState

    config = config_of(preset)
    hf, model = hugging_face(preset, config), tiny_model(config)
    load(model, translated(preset, tensors(hf, gradients=False), config))
    real_BS = torch.arange(LENGTH)[None] < LENGTHS[:, None]
    generator = torch.Generator().manual_seed(1)
    tokens_BS = torch.randint(1, VOCABULARY, (len(LENGTHS), LENGTH), generator=generator) * real_BS
    classes_B = torch.tensor([2, 0, 1, 2])
    if preset == "bert-tiny":
        seen_BS = torch.arange(LENGTH)[None].expand(len(LENGTHS), -1) == 0
        state = ForwardState(segments_BS=real_BS.long() - 1)
    else:
        seen_BS = torch.arange(LENGTH)[None] == LENGTHS[:, None] - 1
        state = ForwardState()
    expected = hf(tokens_BS, attention_mask=real_BS.long(), labels=classes_B)
    found_BC = model(tokens_BS, state, loss_mask=seen_BS.float())
    # theirs turns queries and keys in fp32
    bound = 1e-5 if preset == "llama-tiny" else 1e-11
    torch.testing.assert_close(found_BC, expected.logits, rtol=bound, atol=bound)
    loss = torch.nn.functional.cross_entropy(found_BC, classes_B)
    torch.testing.assert_close(loss, expected.loss, rtol=bound, atol=0)

    loss.backward()
    expected.loss.backward()
    gradients = translated(preset, tensors(hf, gradients=True), config)
    for name, parameter in model.named_parameters():
        if name == "sequence_head.output.bias" and preset != "bert-tiny":
            continue
        scale = float(gradients[name].abs().max())
        assert scale > 0, name
        deviation = float((parameter.grad - gradients[name]).abs().max())
        assert deviation <= bound * scale, f"{name} deviates by {deviation / scale:.1e}"


TP2 = "parallel.tensor_model_parallel_size=2"
SP = "parallel.sequence_parallel=true"
PP2 = "parallel.pipeline_model_parallel_size=2"
VP2 = "parallel.virtual_pipeline_model_parallel_size=2"
CP2 = "parallel.context_parallel_size=2"
TIED = "model.tie_embeddings=true"
GPT_LAYOUTS = {
    "TP2+SP": (2, (TP2, SP)),
    "PP2xVP2": (2, (PP2, VP2)),
    "CP2": (2, (CP2,)),
    "DP2": (2, ()),
    "TP2xPP2": (4, (TP2, PP2)),
}
BERT_LAYOUTS = {"TP2+SP": (2, (TP2, SP)), "PP2": (2, (PP2,)), "TP2": (2, (TP2,))}


@pytest.mark.parametrize("layout", GPT_LAYOUTS)
def test_decoder_with_head_trains_as_in_one_process(layout: str) -> None:
    world_size, overrides = GPT_LAYOUTS[layout]
    found = run(world_size, "llama-tiny", (*TASK, TIED, *overrides))
    assert_same_run(found, run(1, "llama-tiny", (*TASK, TIED)), FP64)
    assert "sequence_head.output.weight" in found.gradients and "output_layer.weight" not in found.weights


@pytest.mark.parametrize("layout", BERT_LAYOUTS)
def test_encoder_with_head_trains_as_in_one_process(layout: str) -> None:
    world_size, overrides = BERT_LAYOUTS[layout]
    steep = (*TASK, "model.init_method_std=0.2")  # norms beyond the limit of clipping
    found = run(world_size, "bert-tiny", (*steep, *overrides), resets=True)
    assert_same_run(found, run(1, "bert-tiny", steep, resets=True), FP64)
    assert "pooler.dense.weight" in found.gradients


def test_experts_with_head_train_under_expert_parallelism_as_in_one_process() -> None:
    found = run(2, "mixtral-tiny", (*TASK, "parallel.expert_model_parallel_size=2"))
    assert_same_run(found, run(1, "mixtral-tiny", TASK), FP64)


@pytest.mark.parametrize(
    "sharding",
    [
        ("parallel.zero_stage=1",),
        ("engine=deepspeed", "parallel.zero_stage=3"),
        ("engine=deepspeed", TP2),
    ],
    ids=["ZeRO-1", "deepspeed-ZeRO-3", "deepspeed-TP2"],
)
def test_sharded_engines_train_the_head_as_one_process_in_fp32(sharding: tuple[str, ...]) -> None:
    fp32 = (*TASK, "precision.dtype=fp32", "optimizer.adam_eps=1e-5")
    assert_same_run(run(2, "llama-tiny", (*fp32, *sharding)), run(1, "llama-tiny", fp32), FP32)


@pytest.mark.parametrize("split", [(TP2,), (TP2, SP)], ids=["TP2", "TP2+SP"])
def test_dropout_in_the_head_is_the_same_on_all_tensor_parallel_ranks(split: tuple[str, ...]) -> None:
    # `run` itself asserts that all ranks report the same losses
    dropped = run(2, "llama-tiny", (*TASK, "model.hidden_dropout=0.5", *split))
    assert dropped.losses != run(2, "llama-tiny", (*TASK, *split)).losses
