"""From our configuration to Megatron-Core's TransformerConfig and layer spec."""

import functools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

from megalm.config.model import ModelConfig
from megalm.config.pipeline import layers_per_chunk
from megalm.config.schema import Config
from megalm.model.attention import CoreAttention
from megalm.model.linear import ColumnLinear, RowLinear
from megalm.model.norm import Norm
from megalm.model.stages import StageLayers
from megalm.parallel.layout import Layout

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "swiglu": F.silu,
    "geglu": F.gelu,
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x).square(),
}


@dataclass
class MegatronConfig(TransformerConfig):
    """Megatron-Core's configuration plus what our own modules read."""

    model: ModelConfig = field(default_factory=ModelConfig)


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
        apply_rope_fusion=False,
        persist_layer_norm=False,
        model=model,
    )
    # the library reads only these bits of the precision; its own casts and scalers stay out of it
    result.bf16, result.fp16 = dtype == torch.bfloat16, dtype == torch.float16
    return result


def layer_spec(num_layers_here: int) -> TransformerBlockSubmodules:
    """Modules of this stage's layers: Megatron-Core's parallel linears, our attention and norms."""
    layer = ModuleSpec(
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
                    q_layernorm=IdentityOp,
                    k_layernorm=IdentityOp,
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=Norm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear),
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers_here, layer_norm=Norm)


def padded_vocab_size(model: ModelConfig, tensor_parallel_size: int) -> int:
    """The vocabulary rounded up to a multiple of `make_vocab_size_divisible_by` x tensor-parallel size."""
    assert model.vocab_size is not None
    multiple = model.make_vocab_size_divisible_by * tensor_parallel_size
    return math.ceil(model.vocab_size / multiple) * multiple
