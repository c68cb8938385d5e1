"""Weights, or gradients, of Hugging Face's BERTs under our names and in our layout."""

import torch

from megalm.config import ModelConfig
from tests.parity.hf_weights import Tensors, query_groups


def from_bert(hf: Tensors, model: ModelConfig) -> Tensors:
    """Tensors of a BertForPreTraining: norms after the residual sums, one behind the embeddings."""
    ours = _embeddings_and_heads(hf) | _pair("embedding.layer_norm", hf, "bert.embeddings.LayerNorm")
    for layer in range(model.num_layers):
        mine, theirs = f"encoder.layers.{layer}", f"bert.encoder.layer.{layer}"
        ours |= _matrices(hf, mine, theirs, model)
        ours |= _pair(f"{mine}.post_attention_layernorm", hf, f"{theirs}.attention.output.LayerNorm")
        ours |= _pair(f"{mine}.post_mlp_layernorm", hf, f"{theirs}.output.LayerNorm")
    return ours


def from_megatron_bert(hf: Tensors, model: ModelConfig) -> Tensors:
    """Tensors of a MegatronBertForPreTraining: norms before attention and MLP, one at the end."""
    ours = _embeddings_and_heads(hf) | _pair("encoder.final_layernorm", hf, "bert.encoder.ln")
    for layer in range(model.num_layers):
        mine, theirs = f"encoder.layers.{layer}", f"bert.encoder.layer.{layer}"
        ours |= _matrices(hf, mine, theirs, model)
        ours |= _pair(f"{mine}.input_layernorm", hf, f"{theirs}.attention.ln")
        ours |= _pair(f"{mine}.pre_mlp_layernorm", hf, f"{theirs}.ln")
    return ours


def _embeddings_and_heads(hf: Tensors) -> Tensors:
    embeddings, transform = "bert.embeddings", "cls.predictions.transform"
    return {
        "embedding.word_embeddings.weight": hf[f"{embeddings}.word_embeddings.weight"],
        "embedding.position_embeddings.weight": hf[f"{embeddings}.position_embeddings.weight"],
        "embedding.tokentype_embeddings.weight": hf[f"{embeddings}.token_type_embeddings.weight"],
        "output_layer.bias": hf["cls.predictions.bias"],
        **_pair("lm_head.dense", hf, f"{transform}.dense"),
        **_pair("lm_head.layer_norm", hf, f"{transform}.LayerNorm"),
        **_pair("pooler.dense", hf, "bert.pooler.dense"),
        **_pair("binary_head", hf, "cls.seq_relationship"),
    }


def _matrices(hf: Tensors, mine: str, theirs: str, model: ModelConfig) -> Tensors:
    ours = {
        **_pair(f"{mine}.self_attention.linear_proj", hf, f"{theirs}.attention.output.dense"),
        **_pair(f"{mine}.mlp.linear_fc1", hf, f"{theirs}.intermediate.dense"),
        **_pair(f"{mine}.mlp.linear_fc2", hf, f"{theirs}.output.dense"),
    }
    for kind in ("weight", "bias"):
        parts = (hf[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value"))
        ours[f"{mine}.self_attention.linear_qkv.{kind}"] = query_groups(*parts, model)
    return ours


def _pair(mine: str, hf: Tensors, theirs: str) -> Tensors:
    return {f"{mine}.{kind}": hf[f"{theirs}.{kind}"] for kind in ("weight", "bias")}


def load(model: torch.nn.Module, weights: Tensors) -> None:
    """Copy full tensors into a model of one process; both must have the same names and shapes."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.shape == weights[name].shape, name
            parameter.copy_(weights[name])
