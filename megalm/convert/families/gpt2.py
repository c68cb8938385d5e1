"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases, matrices kept as (in, out)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from megalm.config.model import ModelConfig
from megalm.convert.families.base import Family, Fixed
from megalm.convert.rules import Rule, fused_query_key_value, transposed, with_bias
from megalm.errors import UserError

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
_SPELLED = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}


class Gpt2(Family):
    """`GPT2LMHeadModel`."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    ours: ClassVar[Fixed] = {
        "position_embedding": "learned",
        "normalization": "LayerNorm",
        "add_bias_linear": True,
    }
    theirs: ClassVar[Fixed] = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }
    ignored = (".attn.bias", ".attn.masked_bias")

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See Family."""
        activation = config.get("activation_function", "gelu_new")
        if activation not in _ACTIVATIONS:
            raise UserError(f"activation_function {activation!r} has no counterpart here")
        dropouts = {config.get("resid_pdrop", 0.1), config.get("embd_pdrop", 0.1)}
        if len(dropouts) > 1:
            raise UserError("resid_pdrop and embd_pdrop differ; make them one: here it is one setting")
        return {
            "num_layers": config["n_layer"],
            "hidden_size": config["n_embd"],
            "ffn_hidden_size": config.get("n_inner") or 4 * config["n_embd"],
            "num_attention_heads": config["n_head"],
            "max_sequence_length": config.get("n_positions", 1024),
            "vocab_size": config["vocab_size"],
            "layernorm_epsilon": config.get("layer_norm_epsilon", 1e-5),
            "activation": _ACTIVATIONS[activation],
            "tie_embeddings": config.get("tie_word_embeddings", True),
            "hidden_dropout": dropouts.pop(),
            "attention_dropout": config.get("attn_pdrop", 0.1),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """See Family."""
        return {
            "n_layer": model.num_layers,
            "n_embd": model.hidden_size,
            "n_inner": model.ffn_size,
            "n_head": model.num_attention_heads,
            "n_positions": model.max_sequence_length,
            "layer_norm_epsilon": model.layernorm_epsilon,
            "activation_function": _SPELLED[model.activation],
            "resid_pdrop": model.hidden_dropout,
            "embd_pdrop": model.hidden_dropout,
            "attn_pdrop": model.attention_dropout,
        }

    def difference(self, model: ModelConfig) -> str | None:
        """See Family."""
        if model.activation not in _SPELLED:
            return f"no activation {model.activation}"
        if model.query_groups != model.num_attention_heads:
            return "as many key/value heads as query heads"
        if model.head_dim * model.num_attention_heads != model.hidden_size:
            return "heads as wide as hidden size / heads"
        return super().difference(model.model_copy(update={"activation": ModelConfig().activation}))

    def rules(self, model: ModelConfig) -> list[Rule]:
        """See Family."""
        rules = [
            Rule("embedding.word_embeddings.weight", ("transformer.wte.weight",)),
            Rule("embedding.position_embeddings.weight", ("transformer.wpe.weight",)),
        ]
        for layer in range(model.num_layers):
            ours, theirs = f"decoder.layers.{layer}", f"transformer.h.{layer}"
            attention = f"{ours}.self_attention"
            rules += with_bias(f"{ours}.input_layernorm", f"{theirs}.ln_1")
            rules += [
                fused_query_key_value(
                    f"{attention}.linear_qkv.{kind}", f"{theirs}.attn.c_attn.{kind}", model, kind == "weight"
                )
                for kind in ("weight", "bias")
            ]
            rules += _matrix(f"{attention}.linear_proj", f"{theirs}.attn.c_proj")
            rules += with_bias(f"{ours}.pre_mlp_layernorm", f"{theirs}.ln_2")
            rules += _matrix(f"{ours}.mlp.linear_fc1", f"{theirs}.mlp.c_fc")
            rules += _matrix(f"{ours}.mlp.linear_fc2", f"{theirs}.mlp.c_proj")
        rules += with_bias("decoder.final_layernorm", "transformer.ln_f")
        return rules if model.tie_embeddings else [*rules, Rule("output_layer.weight", ("lm_head.weight",))]


def _matrix(ours: str, theirs: str) -> list[Rule]:
    return [
        transposed(f"{ours}.weight", f"{theirs}.weight"),
        Rule(f"{ours}.bias", (f"{theirs}.bias",)),
    ]
