"""From our configuration to Megatron-Core's TransformerConfig and layer spec."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import random as megatron_random
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megalm.config.lora import LoraConfig
from megalm.config.model import ModelConfig
from megalm.config.pipeline import layers_per_chunk
from megalm.config.schema import Config
from megalm.model.activation import ACTIVATIONS
from megalm.model.attention import CoreAttention
from megalm.model.linear import ColumnLinear, RowLinear
from megalm.model.moe import moe_module
from megalm.model.norm import HeadNorm, Norm
from megalm.model.quantized import WeightForm, form_of_base, form_of_checkpoint
from megalm.model.stages import StageLayers
from megalm.parallel.layout import Layout

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass
class MegatronConfig(TransformerConfig):
    """Megatron-Core's configuration plus what our own modules read."""

    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    weight_form: WeightForm | None = None
    """What the weights of linear layers lie in, where they are not whole."""


def megatron_config(config: Config, layout: Layout) -> MegatronConfig:
    """Translate the sections model, parallel, precision and train.recompute."""
    model, parallel = config.model, config.parallel
    dtype = DTYPES[config.precision.dtype]
    recompute = config.train.recompute
    whole_layers = recompute.granularity == "full"
    on_cpu = layout.device.type == "cpu"
    interleaved = layout.vp_size > 1
    stages = None
    if layout.pp_size > 1:
        stages = StageLayers(layers_per_chunk(config), layout.pp_size, layout.pp_rank)
    result = MegatronConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_dim,
        add_bias_linear=model.add_bias_linear,
        add_qkv_bias=model.add_qkv_bias,
        qk_layernorm=model.qk_layernorm,
        normalization=model.normalization,
        layernorm_epsilon=model.layernorm_epsilon,
        gated_linear_unit=model.gated,
        activation_func=ACTIVATIONS[model.activation],
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=layout.vp_size if interleaved else None,
        pipeline_model_parallel_layout=stages,
        overlap_p2p_comm=parallel.overlap_p2p_comm,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        **_moe_fields(config, layout),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # weights are filled after construction, see model/init.py
        perform_initialization=False,
        # each rank returns gradients of a sum; the loss is divided by the global weight beforehand
        calculate_per_token_loss=True,
        # gloo reads a sent tensor later than NCCL's stream order would let it be freed
        deallocate_pipeline_outputs=not on_cpu,
        # a batch of an interleaved pipeline of two stages mixes up both directions between the same two ranks
        batch_p2p_comm=not on_cpu and not interleaved,
        recompute_granularity=None if recompute.granularity == "none" else recompute.granularity,
        recompute_method=recompute.method if whole_layers else None,
        recompute_num_layers=recompute.num_layers if whole_layers else None,
        recompute_modules=list(recompute.modules),
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        fp8=None if config.precision.fp8 == "none" else config.precision.fp8,
        fp8_recipe="tensorwise",  # scales of the tensor at hand: no history that a checkpoint would have to hold
        apply_rope_fusion=False,
        persist_layer_norm=False,
        model=model,
        lora=config.lora,
        weight_form=form_of_base(config.lora) or form_of_checkpoint(config.quantization),
    )
    _let_norms_recompute()
    # the library reads only these bits of the precision; its own casts and scalers stay out of it
    result.bf16, result.fp16 = dtype == torch.bfloat16, dtype == torch.float16
    return result


def _let_norms_recompute() -> None:
    """Without Transformer Engine, the library's recompute of norms asks it for fp8 all the same: its `False` counts as yes."""
    if not megatron_random.HAVE_TE:
        megatron_random.CheckpointWithoutOutput.__init__.__defaults__ = (None,)


def _moe_fields(config: Config, layout: Layout) -> dict[str, Any]:
    """What the library is to know of the section model.moe; losses and drops are our router's business."""
    model, moe = config.model, config.model.moe
    if not moe.num_experts:
        return {}
    on_nccl = dist.get_backend(layout.groups.ep) == "nccl"
    dispatcher = moe.dispatcher
    if dispatcher == "auto":
        dispatcher = "alltoall" if on_nccl else "allgather"
    return {
        "expert_model_parallel_size": layout.ep_size,
        "num_moe_experts": moe.num_experts,
        "moe_ffn_hidden_size": model.expert_ffn_size,
        "moe_shared_expert_intermediate_size": moe.shared_expert_ffn_hidden_size,
        "moe_layer_freq": moe.layer_frequency,
        "moe_router_topk": moe.router_top_k,
        "moe_router_pre_softmax": True,
        "moe_router_load_balancing_type": "none",
        "moe_expert_capacity_factor": moe.capacity_factor,
        "moe_token_dispatcher_type": dispatcher,
    }


def layer_spec(
    core: MegatronConfig, groups: ProcessGroupCollection, first: int, count: int
) -> TransformerBlockSubmodules:
    """Modules of `count` layers from number `first` on: Megatron-Core's parallel linears, our attention and norms."""
    head_norm = HeadNorm if core.qk_layernorm else IdentityOp
    dense = ModuleSpec(module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear))
    is_moe = core.model.moe.is_moe_layer
    experts = moe_module(groups)
    return TransformerBlockSubmodules(
        layer_specs=[
            _layer(experts if is_moe(number) else dense, head_norm) for number in range(first, first + count)
        ],
        layer_norm=Norm,
    )


def _layer(mlp: ModuleSpec | type, head_norm: type) -> ModuleSpec:
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=Norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnLinear,
                    core_attention=CoreAttention,
                    linear_proj=RowLinear,
                    q_layernorm=head_norm,
                    k_layernorm=head_norm,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def padded_vocab_size(model: ModelConfig, tensor_parallel_size: int) -> int:
    """The vocabulary rounded up to a multiple of `make_vocab_size_divisible_by` x tensor-parallel size."""
    assert model.vocab_size is not None
    multiple = model.make_vocab_size_divisible_by * tensor_parallel_size
    return math.ceil(model.vocab_size / multiple) * multiple
