"""What an encoder has that a decoder has not: its embedding, the layer with norms at its end, the heads' modules."""

from dataclasses import replace
from typing import Any

from megatron.core.models.bert.bert_lm_head import BertLMHead
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import scatter_to_sequence_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.transformer.utils import get_linear_layer
from torch import Tensor

from megalm.model.norm import Norm
from megalm.model.spec import MegatronConfig, layer_spec


class BertEmbedding(LanguageModelEmbedding):
    """Sum of word, position and token type embeddings; in post-norm encoders normalized before the dropout."""

    def __init__(self, config: MegatronConfig, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        post = config.model.norm_position == "post"
        self.layer_norm = Norm(config, config.hidden_size, config.layernorm_epsilon) if post else None

    def forward(self, input_ids: Tensor, position_ids: Tensor | None, tokentype_ids: Tensor) -> Tensor:  # type: ignore[override]
        """Map ids (B, S) to hidden states (S, B, H), under sequence parallelism this rank's part of S."""
        embedded_BSH = self.word_embeddings(input_ids) + self.tokentype_embeddings(tokentype_ids)
        if self.add_position_embedding:
            embedded_BSH = embedded_BSH + self.position_embeddings(position_ids)
        hidden_SBH = embedded_BSH.transpose(0, 1).contiguous()
        if not self.config.sequence_parallel:
            return self.embedding_dropout(self._normalized(hidden_SBH))
        hidden_SBH = scatter_to_sequence_parallel_region(hidden_SBH, group=self.tp_group).clone()
        with get_cuda_rng_tracker().fork():
            return self.embedding_dropout(self._normalized(hidden_SBH))

    def _normalized(self, hidden_SBH: Tensor) -> Tensor:
        return hidden_SBH if self.layer_norm is None else self.layer_norm(hidden_SBH)


class PostNormLayer(TransformerLayer):
    """Transformer layer of the original kind: norm(x + attention(x)), then norm(x + mlp(x)) (arXiv:1706.03762, 3.1)."""

    def __init__(self, config: MegatronConfig, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self.post_attention_layernorm = Norm(config, config.hidden_size, config.layernorm_epsilon)
        self.post_mlp_layernorm = Norm(config, config.hidden_size, config.layernorm_epsilon)

    def _forward_attention(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Megatron-Core's attention half of a layer: the residual sum, which is normalized here."""
        hidden_SBH, context = super()._forward_attention(*args, **kwargs)
        return self.post_attention_layernorm(hidden_SBH), context

    def _forward_mlp(self, *args: Any, **kwargs: Any) -> Tensor:
        """Megatron-Core's MLP half of a layer, likewise."""
        return self.post_mlp_layernorm(super()._forward_mlp(*args, **kwargs))


class MaskedTokenHead(BertLMHead):
    """Dense layer, activation and norm before the output matrix (arXiv:1810.04805), computed alike on all tensor-parallel ranks."""

    def __init__(self, config: MegatronConfig) -> None:
        # not the library's own: its norm refuses sequence parallelism and fp64
        super(BertLMHead, self).__init__(config=config)
        width = config.hidden_size
        self.dense = get_linear_layer(width, width, config.init_method, config.perform_initialization)
        self.layer_norm = Norm(config, width, config.layernorm_epsilon)
        for parameter in self.layer_norm.parameters():
            parameter.sequence_parallel = False  # type: ignore[attr-defined]
        self.gelu = config.activation_func  # so the inherited forward calls it


def encoder_spec(
    core: MegatronConfig, groups: ProcessGroupCollection, first: int, count: int
) -> TransformerBlockSubmodules:
    """Modules as `layer_spec` has them; post-norm layers have norms of their own, and none follows the last layer."""
    block = layer_spec(core, groups, first, count)
    post = core.model.norm_position == "post"
    layers = [_encoder_layer(layer, post) for layer in block.layer_specs]
    return replace(block, layer_specs=layers, layer_norm=None if post else Norm)


def _encoder_layer(layer: ModuleSpec, post: bool) -> ModuleSpec:
    attention = replace(layer.submodules.self_attention, params={"attn_mask_type": AttnMaskType.padding})
    if not post:
        return replace(layer, submodules=replace(layer.submodules, self_attention=attention))
    submodules = replace(
        layer.submodules,
        self_attention=attention,
        input_layernorm=IdentityOp,
        pre_mlp_layernorm=IdentityOp,
    )
    return replace(layer, module=PostNormLayer, submodules=submodules)
