"""BERT: Megatron-Core's BertModel with our layers and heads, norms before or after the residual sums."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.bert.bert_model import BertModel
from megatron.core.models.bert.pooler import Pooler
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.transformer_block import TransformerBlock, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from megatron.core.transformer.utils import get_linear_layer
from torch import Tensor

from megalm.config.schema import Config
from megalm.model.activation import use_activation_kernel
from megalm.model.bert_layers import BertEmbedding, MaskedTokenHead, encoder_spec
from megalm.model.cross_entropy import local_columns, vocab_parallel_cross_entropy
from megalm.model.gpt import mark_split_parameters
from megalm.model.sequence_head import (
    SequenceHead,
    add_sequence_head,
    sequence_outputs,
    shards_without_output_layer,
)
from megalm.model.spec import DTYPES, megatron_config, padded_vocab_size
from megalm.model.state import ForwardState
from megalm.parallel.layout import Layout

SENTENCE_CLASSES = 2


class Bert(BertModel):
    """A part of an encoder (see `GPT`) with a head for masked tokens and, if asked, one for pairs of segments.

    Or with a sequence head in their place.
    """

    def __init__(self, config: Config, layout: Layout, chunk: int = 0) -> None:
        """chunk: which of the stage's `layout.vp_size` parts this is, in the order of the layers."""
        # not BertModel's own: its parts take the process groups from globals, and its head a norm without SP
        core = megatron_config(config, layout)
        LanguageModule.__init__(self, core, layout.groups)
        model = config.model
        assert model.vocab_size is not None
        self.vocab_size = padded_vocab_size(model, layout.tp_size)
        self.real_vocab_size = model.vocab_size
        self.first_column, self.columns = local_columns(self.vocab_size, model.vocab_size, layout.groups.tp)
        self.pre_process = layout.is_first_stage and chunk == 0
        self.post_process = layout.is_last_stage and chunk == layout.vp_size - 1
        self.vp_stage = chunk if layout.vp_size > 1 else None
        self.has_output_layer = not model.sequence_head.outputs
        self.share_embeddings_and_output_weights = model.tie_embeddings and self.has_output_layer
        self.model_type = ModelType.encoder_or_decoder
        if self.pre_process:
            self.embedding = BertEmbedding(
                core,
                vocab_size=self.vocab_size,
                max_sequence_length=model.max_sequence_length,
                position_embedding_type="learned_absolute"
                if model.position_embedding == "learned"
                else "none",
                num_tokentypes=model.num_token_types,
                tp_group=layout.groups.tp,
            )
        self.encoder = TransformerBlock(
            core,
            encoder_spec(
                core,
                layout.groups,
                first=get_transformer_layer_offset(core, self.vp_stage, layout.pp_rank),
                count=get_num_layers_to_build(core, self.vp_stage, layout.pp_rank),
            ),
            pre_process=self.pre_process,
            post_process=self.post_process,
            pg_collection=layout.groups,
            vp_stage=self.vp_stage,
        )
        use_activation_kernel(self.encoder, model)
        self.sequence_head: SequenceHead | None = None
        if self.post_process:
            if self.has_output_layer:
                self._add_heads(model.sentence_head)
            else:
                add_sequence_head(self, core)
        if self.has_output_layer and (self.pre_process or self.post_process):
            self.setup_embeddings_and_output_layer()
        self.to(device=layout.device, dtype=DTYPES[config.precision.dtype])
        mark_split_parameters(self)

    def _add_heads(self, sentence_head: bool) -> None:
        core = self.config
        self.lm_head = MaskedTokenHead(core)
        self.output_layer = ColumnParallelLinear(
            core.hidden_size,
            self.vocab_size,
            config=core,
            init_method=core.init_method,
            skip_weight_param_allocation=self.pre_process and self.share_embeddings_and_output_weights,
            tp_group=self.pg_collection.tp,
        )
        self.pooler = self.binary_head = None
        if sentence_head:
            self.pooler = Pooler(core.hidden_size, core.init_method, core)
            self.binary_head = get_linear_layer(
                core.hidden_size, SENTENCE_CLASSES, core.init_method, core.perform_initialization
            )

    def _encode(self, tokens_BS: Tensor, state: ForwardState | None, token_types_BS: Tensor | None) -> Tensor:
        """Run this stage's layers. Returns hidden states (S, B, H): on the last stage of the whole sequence.

        Tokens attend to all tokens of their segment of `state`; padding is a segment of its own. token_types_BS: default 0.
        """
        state = state or ForwardState()
        state.causal = False
        hidden_SBH = None
        if self.pre_process:
            if token_types_BS is None:
                token_types_BS = torch.zeros_like(tokens_BS)
            positions_BS = state.positions_BS
            if positions_BS is None:
                positions_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)[None]
            hidden_SBH = self.embedding(tokens_BS, positions_BS, token_types_BS)
        hidden_SBH = self.encoder(hidden_SBH, attention_mask=None, packed_seq_params=state)
        if self.post_process and self.config.sequence_parallel:
            # the heads are computed alike on all ranks, so that each takes its own part of the gradient
            hidden_SBH = gather_from_sequence_parallel_region(
                hidden_SBH, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return hidden_SBH

    def forward(  # type: ignore[override]
        self,
        tokens_BS: Tensor,
        state: ForwardState | None = None,
        token_types_BS: Tensor | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        sentence_labels: Tensor | None = None,
        heads: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Run this stage; what the last stage returns depends on what it is given.

        With a sequence head: its outputs (B, outputs), of the mean of hidden states weighted by loss_mask (B, S). Else with
        tokens_BS alone: logits (B, S, V) over the real vocabulary, gathered over the tensor-parallel ranks, and those of
        the pair (B, 2), None without its head. With labels and loss_mask (B, S), and sentence_labels (B) where there is the
        head (-1: not counted): summed losses, a vector of the masked tokens' and the pairs'. Without `heads`, and from other
        stages, hidden states (S, B, H).
        """
        hidden_SBH = self._encode(tokens_BS, state, token_types_BS)
        if not (self.post_process and heads):
            return hidden_SBH
        if self.sequence_head is not None:
            assert loss_mask is not None
            return sequence_outputs(self, hidden_SBH, loss_mask)
        pair_logits_B2 = None
        if self.binary_head is not None and self.pooler is not None:
            pair_logits_B2 = self.binary_head(self.pooler(hidden_SBH))
        if labels is None or loss_mask is None:
            return self.logits(hidden_SBH), pair_logits_B2
        losses = [self._masked_loss(hidden_SBH, labels.T.flatten(), loss_mask.T.flatten())]
        if pair_logits_B2 is not None and sentence_labels is not None:
            wide_B2 = pair_logits_B2.to(losses[0].dtype)
            losses.append(F.cross_entropy(wide_B2, sentence_labels, ignore_index=-1, reduction="sum"))
        return torch.stack(losses)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The library's."""
        if self.has_output_layer:
            return super().sharded_state_dict(prefix, sharded_offsets, metadata)
        return shards_without_output_layer(self, prefix, sharded_offsets, metadata)

    def _masked_loss(self, hidden_SBH: Tensor, labels_T: Tensor, mask_T: Tensor) -> Tensor:
        """Sum of mask x cross entropy; only the tokens that count go through the head."""
        counted = mask_T.nonzero().squeeze(1)
        if not len(counted):
            counted = torch.zeros(1, dtype=torch.int64, device=mask_T.device)  # of weight zero
        logits_TV = self._local_logits(hidden_SBH.flatten(0, 1)[counted], self.columns)
        group = self.pg_collection.tp
        loss_T = vocab_parallel_cross_entropy(logits_TV, labels_T[counted], self.first_column, group)
        return (loss_T * mask_T[counted]).sum()

    def logits(self, hidden_SBH: Tensor) -> Tensor:
        """Logits (B, S, V) of last hidden states over the real vocabulary, on every rank of TP."""
        logits_BSV = self._local_logits(hidden_SBH).transpose(0, 1).contiguous()
        gathered_BSV = gather_from_tensor_model_parallel_region(logits_BSV, group=self.pg_collection.tp)
        return gathered_BSV[..., : self.real_vocab_size]

    def _local_logits(self, hidden: Tensor, columns: int | None = None) -> Tensor:
        """Logits of this rank's part of the vocabulary (of its first `columns`)."""
        head = copy_to_tensor_model_parallel_region(self.lm_head(hidden), group=self.pg_collection.tp)
        return F.linear(head, self.output_weight()[:columns], self.output_layer.bias[:columns])

    def output_weight(self) -> Tensor:
        """This rank's rows of the output matrix, padding included, shape (padded V / TP, H)."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight
