"""LLaMA 2 and 3, Mistral, Qwen 2 and 3: rotary positions, RMSNorm, SwiGLU, grouped queries."""

from collections.abc import Mapping
from typing import Any, ClassVar

from megalm.config.model import ModelConfig
from megalm.convert.families.base import Family, Fixed
from megalm.convert.rules import Rule, query_key_value, stacked
from megalm.errors import UserError


class Llama(Family):
    """`LlamaForCausalLM`."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    prefix = "model."
    ours: ClassVar[Fixed] = {
        "position_embedding": "rope",
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "add_bias_linear": False,
    }
    theirs: ClassVar[Fixed] = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    ignored = (".rotary_emb.inv_freq",)

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See Family."""
        heads = config["num_attention_heads"]
        return {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "ffn_hidden_size": config["intermediate_size"],
            "num_attention_heads": heads,
            "num_query_groups": config.get("num_key_value_heads") or heads,
            "kv_channels": config.get("head_dim") or config["hidden_size"] // heads,
            "max_sequence_length": self._longest(config),
            "vocab_size": config["vocab_size"],
            "layernorm_epsilon": config.get("rms_norm_eps", 1e-6),
            "tie_embeddings": config.get("tie_word_embeddings", False),
            "attention_dropout": config.get("attention_dropout") or 0.0,
            **rotary_fields(config),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """See Family."""
        return {
            "num_hidden_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "intermediate_size": model.ffn_size,
            "num_attention_heads": model.num_attention_heads,
            "num_key_value_heads": model.query_groups,
            "head_dim": model.head_dim,
            "max_position_embeddings": model.max_sequence_length,
            "rms_norm_eps": model.layernorm_epsilon,
            "hidden_act": "silu",
            "attention_dropout": model.attention_dropout,
            **rotary_config(model),
        }

    def rules(self, model: ModelConfig) -> list[Rule]:
        """See Family."""
        rules = [Rule("embedding.word_embeddings.weight", ("model.embed_tokens.weight",))]
        for layer in range(model.num_layers):
            ours, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
            attention = f"{ours}.self_attention"
            rules += [
                Rule(f"{ours}.input_layernorm.weight", (f"{theirs}.input_layernorm.weight",)),
                *(
                    query_key_value(
                        f"{attention}.linear_qkv.{kind}",
                        [f"{theirs}.self_attn.{part}_proj.{kind}" for part in "qkv"],
                        model,
                    )
                    for kind in (("weight", "bias") if model.add_qkv_bias else ("weight",))
                ),
                *(
                    Rule(f"{attention}.{part}_layernorm.weight", (f"{theirs}.self_attn.{part}_norm.weight",))
                    for part in ("qk" if model.qk_layernorm else "")
                ),
                Rule(f"{attention}.linear_proj.weight", (f"{theirs}.self_attn.o_proj.weight",)),
                Rule(f"{ours}.pre_mlp_layernorm.weight", (f"{theirs}.post_attention_layernorm.weight",)),
                *self.mlp_rules(model, f"{ours}.mlp", theirs),
            ]
        rules.append(Rule("decoder.final_layernorm.weight", ("model.norm.weight",)))
        return rules if model.tie_embeddings else [*rules, Rule("output_layer.weight", ("lm_head.weight",))]

    def _longest(self, config: Mapping[str, Any]) -> int:
        """Tokens up to which a sliding window, if there is one, changes nothing."""
        longest, window = config["max_position_embeddings"], config.get("sliding_window")
        slides = config.get("use_sliding_window", True)
        return min(longest, window) if window and slides else longest

    def mlp_rules(self, model: ModelConfig, ours: str, theirs: str) -> list[Rule]:
        """Rules of one layer's MLP; `theirs` is the layer."""
        return [
            stacked(
                f"{ours}.linear_fc1.weight", [f"{theirs}.mlp.{part}_proj.weight" for part in ("gate", "up")]
            ),
            Rule(f"{ours}.linear_fc2.weight", (f"{theirs}.mlp.down_proj.weight",)),
        ]


class Mistral(Llama):
    """`MistralForCausalLM`: a LLaMA; where it has a sliding window, sequences here are at most as long as the window."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    theirs: ClassVar[Fixed] = {"hidden_act": "silu"}
    defaults: ClassVar[Fixed] = {"sliding_window": 4096, "num_key_value_heads": 8}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """See Family."""
        return {**super().config(model), "sliding_window": None}


class Qwen2(Llama):
    """`Qwen2ForCausalLM`: a LLaMA with biases on queries, keys and values."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    ours: ClassVar[Fixed] = {**Llama.ours, "add_qkv_bias": True}
    theirs: ClassVar[Fixed] = {"hidden_act": "silu"}
    defaults: ClassVar[Fixed] = {"use_sliding_window": False}


class Qwen3(Llama):
    """`Qwen3ForCausalLM`: a LLaMA with norms on each head's queries and keys."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    ours: ClassVar[Fixed] = {**Llama.ours, "qk_layernorm": True}
    defaults: ClassVar[Fixed] = {"use_sliding_window": False}


def rotary_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions, in the spelling of transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`)."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(
            "partial_rotary_factor is not 1: heads of which a part is turned have no counterpart here"
        )
    if kind == "default":
        return {"rope_theta": theta}
    if kind != "llama3":
        raise UserError(f"rotary scaling {kind!r} has no counterpart here (known: default, llama3)")
    if (rope.get("low_freq_factor"), rope.get("high_freq_factor")) != (1.0, 4.0):
        raise UserError("low_freq_factor and high_freq_factor are not 1 and 4, the values of LLaMA 3.1")
    return {
        "rope_theta": theta,
        "rope_scaling_factor": rope["factor"],
        "rope_original_max_sequence_length": rope["original_max_position_embeddings"],
    }


def rotary_config(model: ModelConfig) -> dict[str, Any]:
    """The same in both spellings, so that every version of transformers reads it."""
    if model.rope_scaling_factor == 1.0:
        plain = {"rope_type": "default", "rope_theta": model.rope_theta}
        return {"rope_theta": model.rope_theta, "rope_parameters": plain}
    scaling = {
        "rope_type": "llama3",
        "factor": model.rope_scaling_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": model.rope_original_max_sequence_length,
    }
    return {
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {**scaling, "rope_theta": model.rope_theta},
    }
