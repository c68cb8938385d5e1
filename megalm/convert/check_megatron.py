"""Runs a converted model here and as Megatron-Core's own GPTModel, and tells how far the logits are apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megalm.config.model import ModelConfig
from megalm.config.schema import ParallelConfig
from megalm.convert.check import compare_with
from megalm.convert.megatron_ranks import local_name
from megalm.convert.parameters import decoder_parameters
from megalm.convert.source import Source
from megalm.errors import UserError
from megalm.parallel.layout import create_layout


def compare_with_library(
    checkpoint: Path,
    args: Mapping[str, Any],
    theirs: Source,
    model: ModelConfig,
    written: Source | None = None,
) -> dict[str, Any]:
    """Largest difference of any logit between a checkpoint of ours and a model of Megatron-LM's (see `compare_with`).

    The other side is the library's model with its own layers, built from Megatron-LM's arguments `args` as that does it, with
    the tensors of `theirs`, which `model` lists. Raises UserError as `compare_with`, and where the arguments describe a
    model with other parameters.
    """
    return compare_with(checkpoint, lambda tokens_BS: _logits(args, theirs, model, tokens_BS), written)


def _logits(args: Mapping[str, Any], theirs: Source, model: ModelConfig, tokens_BS: Tensor) -> Tensor:
    library = library_model(args, model.vocab_size)
    parameters = dict(library.named_parameters())
    names = {local_name(name, 0, False, model): name for name in decoder_parameters(model)}
    if differ := parameters.keys() ^ names.keys():
        raise UserError(
            f"the arguments describe a model with other parameters than the tensors make ({min(differ)}, ...); "
            "--no-check converts all the same"
        )
    for local, name in names.items():
        tensor = theirs.read(name)
        if tensor.shape != parameters[local].shape:
            raise UserError(
                f"the arguments describe a model with {name} of shape {tuple(parameters[local].shape)}, the tensor has "
                f"{tuple(tensor.shape)}; --no-check converts all the same"
            )
        parameters[local].copy_(tensor)
    device = next(library.parameters()).device
    length = tokens_BS.shape[1]
    positions_1S = torch.arange(length, device=device)[None]
    hidden_11SS = torch.ones(1, 1, length, length, dtype=torch.bool, device=device).triu(1)
    return library.eval()(tokens_BS.to(device), positions_1S, hidden_11SS).cpu()


def library_model(args: Mapping[str, Any], vocab_size: int | None) -> Any:
    """The GPTModel that Megatron-LM builds of its arguments on one process, in fp32; weights are not set."""
    layout = create_layout(ParallelConfig())
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    given = {name: args[name] for name in _FIELDS if args.get(name) is not None}
    for theirs, ours in _RENAMED.items():
        if args.get(theirs) is not None:
            given[ours] = args[theirs]
    if args.get("group_query_attention"):
        given["num_query_groups"] = args["num_query_groups"]
    if args.get("num_experts"):
        given |= {"moe_token_dispatcher_type": "allgather", "moe_router_load_balancing_type": "none"}
    core = TransformerConfig(
        **given,
        gated_linear_unit=bool(args.get("swiglu")),
        activation_func=_activation(args),
        use_cpu_initialization=True,
        pipeline_dtype=torch.float32,
    )
    return GPTModel(
        core,
        get_gpt_decoder_block_spec(core, use_transformer_engine=False, normalization=core.normalization),
        vocab_size=vocab_size,
        max_sequence_length=args["max_position_embeddings"],
        share_embeddings_and_output_weights=not args.get("untie_embeddings_and_output_weights", False),
        position_embedding_type=args.get("position_embedding_type", "learned_absolute"),
        rotary_base=args.get("rotary_base", 10000),
        rope_scaling=bool(args.get("use_rope_scaling")),
        rope_scaling_factor=args.get("rope_scaling_factor", 8.0),
        pg_collection=layout.groups,
    ).to(layout.device)


_FIELDS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "kv_channels",
    "normalization",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "moe_router_topk",
    "moe_ffn_hidden_size",
    "moe_layer_freq",
    "moe_shared_expert_intermediate_size",
    "moe_router_pre_softmax",
    "moe_router_score_function",
)
"""Arguments that are fields of the library's settings, under the same names."""
_RENAMED = {"num_experts": "num_moe_experts", "norm_epsilon": "layernorm_epsilon"}


def _activation(args: Mapping[str, Any]) -> Any:
    if args.get("swiglu"):
        return F.silu
    if args.get("squared_relu"):
        return _squared_relu
    tanh = args.get("openai_gelu") or args.get("bias_gelu_fusion", True)
    return _tanh_gelu if tanh else F.gelu


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
