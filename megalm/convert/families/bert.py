"""BERT (arXiv:1810.04805) and Megatron's BERT with norms before attention and MLP (arXiv:1909.08053)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from megalm.config.model import ModelConfig
from megalm.convert.families.base import Family, Fixed
from megalm.convert.rules import Rule, query_key_value, with_bias


class Bert(Family):
    """`BertForPreTraining`: norms after the residual sums, one behind the embeddings."""

    model_type = "bert"
    architecture = "BertForPreTraining"
    prefix = "bert."
    ours: ClassVar[Fixed] = {
        "architecture": "bert",
        "position_embedding": "learned",
        "normalization": "LayerNorm",
        "norm_position": "post",
        "activation": "gelu",
        "add_bias_linear": True,
    }
    theirs: ClassVar[Fixed] = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "tie_word_embeddings": True,
        "add_cross_attention": False,
    }
    # the output matrix and its bias are the embedding's and `cls.predictions.bias` once more
    ignored = (".position_ids", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias")

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See Family."""
        return {
            "num_layers": config["num_hidden_layers"],
            "hidden_size": config["hidden_size"],
            "ffn_hidden_size": config["intermediate_size"],
            "num_attention_heads": config["num_attention_heads"],
            "max_sequence_length": config["max_position_embeddings"],
            "vocab_size": config["vocab_size"],
            "num_token_types": config.get("type_vocab_size", 2),
            "layernorm_epsilon": config.get("layer_norm_eps", 1e-12),
            "tie_embeddings": True,
            "hidden_dropout": config.get("hidden_dropout_prob", 0.1),
            "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """See Family."""
        return {
            "num_hidden_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "intermediate_size": model.ffn_size,
            "num_attention_heads": model.num_attention_heads,
            "max_position_embeddings": model.max_sequence_length,
            "type_vocab_size": model.num_token_types,
            "layer_norm_eps": model.layernorm_epsilon,
            "hidden_act": "gelu",
            "hidden_dropout_prob": model.hidden_dropout,
            "attention_probs_dropout_prob": model.attention_dropout,
        }

    def difference(self, model: ModelConfig) -> str | None:
        """See Family."""
        if not (model.tie_embeddings and model.sentence_head):
            return "tied embeddings and a head for pairs"
        return super().difference(model)

    def rules(self, model: ModelConfig) -> list[Rule]:
        """See Family."""
        embeddings, transform = "bert.embeddings", "cls.predictions.transform"
        rules = [
            Rule(f"embedding.{ours}_embeddings.weight", (f"{embeddings}.{theirs}_embeddings.weight",))
            for ours, theirs in (("word", "word"), ("position", "position"), ("tokentype", "token_type"))
        ]
        rules += self.norms_around()
        for layer in range(model.num_layers):
            ours, theirs = f"encoder.layers.{layer}", f"bert.encoder.layer.{layer}"
            rules += [
                query_key_value(
                    f"{ours}.self_attention.linear_qkv.{kind}",
                    [f"{theirs}.attention.self.{part}.{kind}" for part in ("query", "key", "value")],
                    model,
                )
                for kind in ("weight", "bias")
            ]
            rules += with_bias(f"{ours}.self_attention.linear_proj", f"{theirs}.attention.output.dense")
            rules += with_bias(f"{ours}.mlp.linear_fc1", f"{theirs}.intermediate.dense")
            rules += with_bias(f"{ours}.mlp.linear_fc2", f"{theirs}.output.dense")
            rules += self.norms_of_layer(ours, theirs)
        rules += with_bias("lm_head.dense", f"{transform}.dense")
        rules += with_bias("lm_head.layer_norm", f"{transform}.LayerNorm")
        rules.append(Rule("output_layer.bias", ("cls.predictions.bias",)))
        rules += with_bias("pooler.dense", "bert.pooler.dense")
        return rules + with_bias("binary_head", "cls.seq_relationship")

    def norms_around(self) -> list[Rule]:
        """Rules of the norm that is in no layer."""
        return with_bias("embedding.layer_norm", "bert.embeddings.LayerNorm")

    def norms_of_layer(self, ours: str, theirs: str) -> list[Rule]:
        """Rules of a layer's norms."""
        return [
            *with_bias(f"{ours}.post_attention_layernorm", f"{theirs}.attention.output.LayerNorm"),
            *with_bias(f"{ours}.post_mlp_layernorm", f"{theirs}.output.LayerNorm"),
        ]


class MegatronBert(Bert):
    """`MegatronBertForPreTraining`: norms before attention and MLP, one at the end."""

    model_type = "megatron-bert"
    architecture = "MegatronBertForPreTraining"
    ours: ClassVar[Fixed] = {**Bert.ours, "norm_position": "pre"}

    def norms_around(self) -> list[Rule]:
        """See Bert."""
        return with_bias("encoder.final_layernorm", "bert.encoder.ln")

    def norms_of_layer(self, ours: str, theirs: str) -> list[Rule]:
        """See Bert."""
        return [
            *with_bias(f"{ours}.input_layernorm", f"{theirs}.attention.ln"),
            *with_bias(f"{ours}.pre_mlp_layernorm", f"{theirs}.ln"),
        ]
