"""Model presets: published architectures by name, and tiny ones for tests and laptops.

A preset leaves the vocabulary to the tokenizer: `gpt2-14m` counts 14 million parameters with 8,192 tokens,
`llama-15m` 15 million with 32,000, the large ones what their names say with their own tokenizers.
"""

import copy
from typing import Any

from megalm.config.suggest import nearest
from megalm.errors import UserError


def _gpt2(layers: int, hidden: int, heads: int) -> dict[str, Any]:
    """GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases, tied embeddings."""
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "max_sequence_length": 1024,
        "position_embedding": "learned",
        "normalization": "LayerNorm",
        "activation": "gelu_tanh",
        "add_bias_linear": True,
        "tie_embeddings": True,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    }


def _llama(
    layers: int, hidden: int, ffn: int, heads: int, groups: int | None = None, length: int = 4096, **more: Any
) -> dict[str, Any]:
    """LLaMA (arXiv:2302.13971, 2307.09288, 2407.21783): RoPE, RMSNorm, SwiGLU, no biases."""
    return {
        "num_layers": layers,
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_attention_heads": heads,
        "num_query_groups": groups or heads,
        "max_sequence_length": length,
        "position_embedding": "rope",
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "add_bias_linear": False,
        "tie_embeddings": False,
        **more,
    }


def _mixtral(
    layers: int, hidden: int, ffn: int, heads: int, groups: int, length: int, **moe: Any
) -> dict[str, Any]:
    """Mixtral (arXiv:2401.04088): a LLaMA with 8 experts in every layer, 2 for each token."""
    moe = {"num_experts": 8, "router_top_k": 2, "norm_topk_prob": True, **moe}
    return _llama(layers, hidden, ffn, heads, groups, length, moe=moe)


def _bert(layers: int, hidden: int, heads: int, **more: Any) -> dict[str, Any]:
    """BERT (arXiv:1810.04805): an encoder with learned positions, LayerNorm after the residual sum, GELU by erf."""
    return {
        "architecture": "bert",
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "max_sequence_length": 512,
        "position_embedding": "learned",
        "normalization": "LayerNorm",
        "norm_position": "post",
        "layernorm_epsilon": 1e-12,
        "activation": "gelu",
        "add_bias_linear": True,
        "tie_embeddings": True,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        **more,
    }


# Megatron's BERT (arXiv:1909.08053, section 5.4): norms before attention and MLP let it grow deeper
_MEGATRON_BERT: dict[str, Any] = {"norm_position": "pre", "layernorm_epsilon": 1e-5}
_NO_DROPOUT: dict[str, Any] = {"hidden_dropout": 0.0, "attention_dropout": 0.0}

_LLAMA3: dict[str, Any] = {"length": 8192, "rope_theta": 500000.0}
_LLAMA31: dict[str, Any] = {"length": 131072, "rope_theta": 500000.0, "rope_scaling_factor": 8.0}
_LLAMA32: dict[str, Any] = {
    "length": 131072,
    "rope_theta": 500000.0,
    "rope_scaling_factor": 32.0,
    "tie_embeddings": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-tiny": _gpt2(2, 64, 4) | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gpt2-14m": _gpt2(6, 384, 6) | {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "gpt2-124m": _gpt2(12, 768, 12),
    "gpt2-355m": _gpt2(24, 1024, 16),
    "gpt2-774m": _gpt2(36, 1280, 20),
    "gpt2-1.5b": _gpt2(48, 1600, 25),
    "bert-tiny": _bert(2, 64, 4, **_NO_DROPOUT),
    "bert-base": _bert(12, 768, 12),
    "bert-large": _bert(24, 1024, 16),
    "megatron-bert-tiny": _bert(2, 64, 4, **_MEGATRON_BERT, **_NO_DROPOUT),
    "megatron-bert-345m": _bert(24, 1024, 16, **_MEGATRON_BERT),
    "llama-tiny": _llama(2, 64, 176, 4, 2, 1024),
    "llama-15m": _llama(6, 288, 768, 6, 6, 1024, tie_embeddings=True),
    "llama-110m": _llama(12, 768, 2048, 12, 12, 1024),
    "llama-1b": _llama(16, 2048, 8192, 32, 8, **_LLAMA32),
    "llama-3b": _llama(28, 3072, 8192, 24, 8, **_LLAMA32),
    "llama-7b": _llama(32, 4096, 11008, 32),
    "llama-13b": _llama(40, 5120, 13824, 40),
    "llama-8b": _llama(32, 4096, 14336, 32, 8, **_LLAMA3),
    "llama-70b": _llama(80, 8192, 28672, 64, 8, **_LLAMA3),
    "llama-405b": _llama(126, 16384, 53248, 128, 8, **_LLAMA31),
    "mixtral-tiny": _mixtral(2, 64, 96, 4, 2, 1024, num_experts=4),
    "mixtral-8x7b": _mixtral(32, 4096, 14336, 32, 8, 32768) | {"rope_theta": 1000000.0},
}


def model_preset(name: str) -> dict[str, Any]:
    """Return the preset's fields of the section `model`; UserError names the nearest one if it is unknown."""
    if name not in PRESETS:
        raise UserError(
            f"model.preset {name!r} is unknown{nearest(name, PRESETS)} (known: {', '.join(PRESETS)})"
        )
    return copy.deepcopy(PRESETS[name])
