"""Between Megatron-LM's arguments, which its checkpoints carry, and our section `model`."""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from megalm.config.model import ModelConfig
from megalm.errors import UserError

_SAME = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "kv_channels",
    "normalization",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "hidden_dropout",
    "attention_dropout",
)
"""Arguments that are called and mean the same here."""
_ONLY = {
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "apply_layernorm_1p": False,
    "apply_residual_connection_post_layernorm": False,
    "multi_latent_attention": False,
    "mtp_num_layers": None,
    "is_hybrid_model": False,
}
"""Arguments of which our model computes one value."""
_POSITIONS = {"learned_absolute": "learned", "rope": "rope", "none": "none"}
ROPE_SCALING = {"factor": 8.0, "original": 8192}


def model_of(args: Mapping[str, Any], where: str, vocab_size: int | None) -> ModelConfig:
    """The section `model` of a model that was trained with `args`.

    vocab_size: without padding; by default what the arguments say, which may be the padded one. Raises UserError, with
    the file `where`, for what we do not compute, and for a vocab_size that leaves out more than the padding.
    """
    if vocab_size is not None:
        _check_padding(args, where, vocab_size)
    for name, value in _ONLY.items():
        if args.get(name, value) not in (value, None):
            raise UserError(f"{where}: {name} is {args[name]!r}, and only {value!r} has a counterpart here")
    try:
        fields: dict[str, Any] = {name: args[name] for name in _SAME if args.get(name) is not None}
        fields |= {
            "max_sequence_length": args["max_position_embeddings"],
            "vocab_size": vocab_size or args.get("vocab_size") or args["padded_vocab_size"],
            "position_embedding": _POSITIONS[args.get("position_embedding_type", "learned_absolute")],
            "layernorm_epsilon": args.get("norm_epsilon", args.get("layernorm_epsilon", 1e-5)),
            "activation": _activation(args),
            "tie_embeddings": not args.get("untie_embeddings_and_output_weights", False),
            "rope_theta": float(args.get("rotary_base", 10000)),
            "moe": _experts(args, where),
        }
        grouped = args.get("group_query_attention", False)
        fields["num_query_groups"] = args["num_query_groups"] if grouped else args["num_attention_heads"]
    except KeyError as error:
        raise UserError(
            f"{where}: its arguments lack {error.args[0]}; is it a checkpoint of Megatron-LM?"
        ) from None
    if args.get("use_rope_scaling"):
        fields["rope_scaling_factor"] = float(args.get("rope_scaling_factor", ROPE_SCALING["factor"]))
        fields["rope_original_max_sequence_length"] = ROPE_SCALING["original"]
    return ModelConfig(**fields)


def _check_padding(args: Mapping[str, Any], where: str, vocab_size: int) -> None:
    """A vocabulary is padded to the next multiple, so that less than one is padding."""
    known, padded = args.get("vocab_size"), args.get("padded_vocab_size")
    multiple = args.get("make_vocab_size_divisible_by", 128) * args.get("tensor_model_parallel_size", 1)
    least = known or (padded - multiple + 1 if padded else 1)
    if vocab_size < least:
        raise UserError(
            f"--vocab-size {vocab_size} would cut tokens off: by its arguments the vocabulary of {where} has "
            f"{'' if known else 'at least '}{least}"
        )


def args_of(model: ModelConfig, padded_vocab_size: int) -> Namespace:
    """The arguments with which Megatron-LM builds `model`; UserError for what it does not compute."""
    positions = {ours: theirs for theirs, ours in _POSITIONS.items()}
    if model.architecture != "gpt" or model.position_embedding not in positions:
        raise UserError(
            f"Megatron-LM's GPT has no {model.architecture} with positions {model.position_embedding!r}"
        )
    if model.rope_scaling_factor != 1 and model.rope_original_max_sequence_length != ROPE_SCALING["original"]:
        raise UserError(
            f"Megatron-LM scales rotary positions from {ROPE_SCALING['original']} tokens only, not from "
            f"{model.rope_original_max_sequence_length}"
        )
    if model.activation in ("relu", "geglu"):
        raise UserError(f"Megatron-LM has no argument for the activation {model.activation}")
    args = {name: getattr(model, name) for name in _SAME} | {
        "ffn_hidden_size": model.ffn_size,
        "kv_channels": model.head_dim,
        "max_position_embeddings": model.max_sequence_length,
        "seq_length": model.max_sequence_length,
        "vocab_size": model.vocab_size,
        "padded_vocab_size": padded_vocab_size,
        "make_vocab_size_divisible_by": model.make_vocab_size_divisible_by,
        "position_embedding_type": positions[model.position_embedding],
        "norm_epsilon": model.layernorm_epsilon,
        "swiglu": model.activation == "swiglu",
        "squared_relu": model.activation == "squared_relu",
        "openai_gelu": False,
        "bias_gelu_fusion": model.activation == "gelu_tanh",
        "untie_embeddings_and_output_weights": not model.tie_embeddings,
        "rotary_base": model.rope_theta,
        "rotary_percent": 1.0,
        "use_rope_scaling": model.rope_scaling_factor != 1,
        "rope_scaling_factor": model.rope_scaling_factor,
        "group_query_attention": model.query_groups != model.num_attention_heads,
        "num_query_groups": model.query_groups,
        "num_experts": model.moe.num_experts or None,
    }
    if model.moe.num_experts:
        if model.moe.score_function != "softmax" or not model.moe.norm_topk_prob:
            raise UserError(
                "experts' weights that do not sum to one by a softmax have no counterpart in Megatron-LM"
            )
        args |= {
            "moe_router_topk": model.moe.router_top_k,
            "moe_ffn_hidden_size": model.expert_ffn_size,
            "moe_layer_freq": model.moe.layer_frequency,
            "moe_shared_expert_intermediate_size": model.moe.shared_expert_ffn_hidden_size,
            "moe_router_pre_softmax": False,
            "moe_router_score_function": "softmax",
        }
    return Namespace(**args)


def _activation(args: Mapping[str, Any]) -> str:
    if args.get("swiglu"):
        return "swiglu"
    if args.get("squared_relu"):
        return "squared_relu"
    # its fused GELU is the approximation by tanh, its plain one exact
    return "gelu_tanh" if args.get("openai_gelu") or args.get("bias_gelu_fusion", True) else "gelu"


def _experts(args: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not args.get("num_experts"):
        return {}
    frequency = args.get("moe_layer_freq", 1)
    if not isinstance(frequency, int):
        raise UserError(
            f"{where}: moe_layer_freq is {frequency!r}: only every n-th layer can have experts here"
        )
    if args.get("moe_router_score_function", "softmax") != "softmax" or args.get("moe_router_pre_softmax"):
        raise UserError(f"{where}: only a softmax over the experts chosen has a counterpart here")
    return {
        "num_experts": args["num_experts"],
        "router_top_k": args["moe_router_topk"],
        "moe_ffn_hidden_size": args.get("moe_ffn_hidden_size"),
        "layer_frequency": frequency,
        "shared_expert_ffn_hidden_size": args.get("moe_shared_expert_intermediate_size"),
        "norm_topk_prob": True,
    }
