"""Weights, or gradients, of Hugging Face's GPT-2, LLaMA and Mixtral under our names and in our layout."""

import torch
from torch import Tensor

from megalm.config import ModelConfig

Tensors = dict[str, Tensor]


def from_gpt2(hf: Tensors, model: ModelConfig) -> Tensors:
    """Tensors of a GPT2LMHeadModel; its Conv1D matrices are (in, out)."""
    ours = {
        "embedding.word_embeddings.weight": hf["transformer.wte.weight"],
        "embedding.position_embeddings.weight": hf["transformer.wpe.weight"],
        **_pair("decoder.final_layernorm", hf, "transformer.ln_f"),
    }
    for layer in range(model.num_layers):
        mine, theirs = f"decoder.layers.{layer}", f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            query, key, value = hf[f"{theirs}.attn.c_attn.{kind}"].T.chunk(3)
            ours[f"{mine}.self_attention.linear_qkv.{kind}"] = query_groups(query, key, value, model)
        ours |= _pair(f"{mine}.input_layernorm", hf, f"{theirs}.ln_1")
        ours |= _pair(f"{mine}.pre_mlp_layernorm", hf, f"{theirs}.ln_2")
        ours |= _pair(f"{mine}.self_attention.linear_proj", hf, f"{theirs}.attn.c_proj", transpose=True)
        ours |= _pair(f"{mine}.mlp.linear_fc1", hf, f"{theirs}.mlp.c_fc", transpose=True)
        ours |= _pair(f"{mine}.mlp.linear_fc2", hf, f"{theirs}.mlp.c_proj", transpose=True)
    return ours | _output(hf, model)


def from_llama(hf: Tensors, model: ModelConfig) -> Tensors:
    """Tensors of a LlamaForCausalLM; its gate and up projections are the halves of our first MLP matrix."""
    ours = _around_mlps(hf, model)
    for layer in range(model.num_layers):
        mine, theirs = f"decoder.layers.{layer}.mlp", f"model.layers.{layer}.mlp"
        gate, up = (hf[f"{theirs}.{part}_proj.weight"] for part in ("gate", "up"))
        ours |= {
            f"{mine}.linear_fc1.weight": torch.cat([gate, up]),
            f"{mine}.linear_fc2.weight": hf[f"{theirs}.down_proj.weight"],
        }
    return ours


def from_mixtral(hf: Tensors, model: ModelConfig) -> Tensors:
    """Tensors of a MixtralForCausalLM, which stacks its experts."""
    ours = _around_mlps(hf, model)
    for layer in range(model.num_layers):
        mine, theirs = f"decoder.layers.{layer}.mlp", f"model.layers.{layer}.mlp"
        ours[f"{mine}.router.weight"] = hf[f"{theirs}.gate.weight"]
        for expert in range(model.moe.num_experts):
            for part, name in (("linear_fc1", "gate_up_proj"), ("linear_fc2", "down_proj")):
                stacked = hf[f"{theirs}.experts.{name}"]
                ours[f"{mine}.experts.local_experts.{expert}.{part}.weight"] = stacked[expert]
    return ours


def _around_mlps(hf: Tensors, model: ModelConfig) -> Tensors:
    """All of a LLaMA but its MLPs."""
    ours = {
        "embedding.word_embeddings.weight": hf["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": hf["model.norm.weight"],
    }
    for layer in range(model.num_layers):
        mine, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
        query, key, value = (hf[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv")
        ours |= {
            f"{mine}.input_layernorm.weight": hf[f"{theirs}.input_layernorm.weight"],
            f"{mine}.pre_mlp_layernorm.weight": hf[f"{theirs}.post_attention_layernorm.weight"],
            f"{mine}.self_attention.linear_qkv.weight": query_groups(query, key, value, model),
            f"{mine}.self_attention.linear_proj.weight": hf[f"{theirs}.self_attn.o_proj.weight"],
        }
        if model.qk_layernorm:
            ours |= {
                f"{mine}.self_attention.{part}_layernorm.weight": hf[f"{theirs}.self_attn.{part}_norm.weight"]
                for part in "qk"
            }
    return ours | _output(hf, model)


def query_groups(query: Tensor, key: Tensor, value: Tensor, model: ModelConfig) -> Tensor:
    """Rows in Megatron's order: for each query group its queries, then its key, then its value."""
    groups = model.query_groups
    parts = [part.reshape(groups, -1, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def _pair(mine: str, hf: Tensors, theirs: str, transpose: bool = False) -> Tensors:
    weight = hf[f"{theirs}.weight"]
    return {f"{mine}.weight": weight.T if transpose else weight, f"{mine}.bias": hf[f"{theirs}.bias"]}


def _output(hf: Tensors, model: ModelConfig) -> Tensors:
    return {} if model.tie_embeddings else {"output_layer.weight": hf["lm_head.weight"]}
