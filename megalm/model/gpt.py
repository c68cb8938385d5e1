"""GPT and LLaMA: Megatron-Core's GPTModel with our layers, positions and output head."""

import contextlib
from typing import Any

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor, nn

from megalm.config.schema import Config
from megalm.model.activation import use_activation_kernel
from megalm.model.cross_entropy import linear_cross_entropy, local_columns, vocab_parallel_cross_entropy
from megalm.model.layer_outputs import keep_layer_outputs
from megalm.model.positions import sinusoidal_table
from megalm.model.sequence_head import (
    SequenceHead,
    add_sequence_head,
    sequence_outputs,
    shards_without_output_layer,
)
from megalm.model.spec import DTYPES, layer_spec, megatron_config, padded_vocab_size
from megalm.model.state import ForwardState
from megalm.model.transformer_engine import with_transformer_engine
from megalm.parallel.layout import Layout

_TABLE_POSITIONS = ("learned", "sinusoidal")


class GPT(GPTModel):
    """A part of a decoder-only transformer: a pipeline stage, or one chunk of it where the pipeline is interleaved."""

    def __init__(self, config: Config, layout: Layout, chunk: int = 0) -> None:
        """chunk: which of the stage's `layout.vp_size` parts this is, in the order of the layers."""
        model = config.model
        vp_stage = chunk if layout.vp_size > 1 else None
        assert model.vocab_size is not None
        core = megatron_config(config, layout)
        super().__init__(
            core,
            with_transformer_engine(
                layer_spec(
                    core,
                    layout.groups,
                    first=get_transformer_layer_offset(core, vp_stage, layout.pp_rank),
                    count=get_num_layers_to_build(core, vp_stage, layout.pp_rank),
                ),
                config,
            ),
            vocab_size=padded_vocab_size(model, layout.tp_size),
            max_sequence_length=model.max_sequence_length,
            pre_process=layout.is_first_stage and chunk == 0,
            post_process=layout.is_last_stage and chunk == layout.vp_size - 1,
            share_embeddings_and_output_weights=model.tie_embeddings and not model.sequence_head.outputs,
            position_embedding_type="learned_absolute"
            if model.position_embedding in _TABLE_POSITIONS
            else "none",
            pg_collection=layout.groups,
            vp_stage=vp_stage,
        )
        self.fused_cross_entropy = model.cross_entropy != "plain"
        self.liger_cross_entropy = model.cross_entropy == "liger"
        self.chunk_tokens = model.cross_entropy_chunk_tokens
        self.first_column, self.columns = local_columns(self.vocab_size, model.vocab_size, layout.groups.tp)
        self.real_vocab_size = model.vocab_size
        if model.position_embedding == "sinusoidal" and self.pre_process:
            table = self.embedding.position_embeddings.weight
            table.requires_grad_(False)
            table.data = sinusoidal_table(*table.shape)
        use_activation_kernel(self.decoder, model)
        self.has_output_layer = not model.sequence_head.outputs
        self.sequence_head: SequenceHead | None = None
        if self.post_process and not self.has_output_layer:
            del self.output_layer
            add_sequence_head(self, core)
        self.to(device=layout.device, dtype=DTYPES[config.precision.dtype])
        mark_split_parameters(self)

    def forward(  # type: ignore[override]
        self,
        tokens_BS: Tensor,
        state: ForwardState | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
    ) -> Tensor:
        """Run this stage; what the last stage returns depends on what it is given.

        With a sequence head: its outputs (B, outputs), of the mean of hidden states weighted by loss_mask (B, S). Else with
        tokens_BS alone: logits (B, S, V) over the real vocabulary, gathered over the tensor-parallel ranks.
        labels (B, S): cross entropy of each token, (B, S). labels and loss_mask (B, S): the sum of mask x cross
        entropy, a scalar. Other stages return hidden states (S, B, H). A `state.head` takes the place of all this.
        """
        state = state or ForwardState()
        positions_BS = state.positions_BS
        if positions_BS is None and self.config.model.position_embedding in _TABLE_POSITIONS:
            positions_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)[None]
        # torch.compile follows the plain context, not the other
        wanted = bool(state.layer_outputs)
        with keep_layer_outputs(self.decoder.layers, state) if wanted else contextlib.nullcontext():
            return super().forward(
                tokens_BS, positions_BS, None, labels=labels, loss_mask=loss_mask, packed_seq_params=state
            )

    def _postprocess(
        self,
        hidden_states: Tensor,
        *_unused: Any,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        packed_seq_params: ForwardState | None = None,
        **_unused_too: Any,
    ) -> Tensor:
        """Megatron-Core's hook after the last layer: our head instead of its own."""
        if not self.post_process:
            return hidden_states
        if packed_seq_params is not None and packed_seq_params.head is not None:
            return packed_seq_params.head(self, hidden_states)
        group = self.pg_collection.tp
        if self.sequence_head is not None:
            if self.config.sequence_parallel:
                # the head is computed alike on all ranks, so that each takes its own part of the gradient
                hidden_states = gather_from_sequence_parallel_region(
                    hidden_states, tensor_parallel_output_grad=False, group=group
                )
            assert loss_mask is not None
            return sequence_outputs(self, hidden_states, loss_mask)
        if labels is None:
            return self.logits(hidden_states)
        hidden_SBH = self.whole_hidden(hidden_states)
        weight_VH = self.real_output_weight()
        if loss_mask is not None and self.fused_cross_entropy:
            return linear_cross_entropy(
                hidden_SBH.flatten(0, 1),
                weight_VH,
                labels.T.flatten(),
                loss_mask.T.flatten(),
                self.first_column,
                group,
                self.chunk_tokens,
                self.liger_cross_entropy,
            )
        logits_TV = (hidden_SBH @ weight_VH.T).flatten(0, 1)
        loss_T = vocab_parallel_cross_entropy(logits_TV, labels.T.flatten(), self.first_column, group)
        loss_BS = loss_T.view(hidden_SBH.shape[:2]).T
        return loss_BS if loss_mask is None else (loss_BS * loss_mask).sum()

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits (B, S, V) of last hidden states (as a `ForwardState.head` gets them) over the real vocabulary, on every rank of TP."""
        logits_BSV = (self.whole_hidden(hidden_states) @ self.output_weight().T).transpose(0, 1).contiguous()
        gathered_BSV = gather_from_tensor_model_parallel_region(logits_BSV, group=self.pg_collection.tp)
        return gathered_BSV[..., : self.real_vocab_size]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The library's."""
        if self.has_output_layer:
            return super().sharded_state_dict(prefix, sharded_offsets, metadata)
        return shards_without_output_layer(self, prefix, sharded_offsets, metadata)

    def whole_hidden(self, hidden_states: Tensor) -> Tensor:
        """The last hidden states as a head wants them: whole sequences, gradients summed over the tensor-parallel ranks."""
        group = self.pg_collection.tp
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=True, group=group
            )
        return copy_to_tensor_model_parallel_region(hidden_states, group=group)

    def real_output_weight(self) -> Tensor:
        """This rank's rows of the output matrix without padding, from vocabulary entry `first_column` on."""
        weight_VH = self.output_weight()
        # a slice costs a whole gradient's copy
        return weight_VH[: self.columns] if self.columns < len(weight_VH) else weight_VH

    def output_weight(self) -> Tensor:
        """This rank's rows of the output matrix, padding included, shape (padded V / TP, H)."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight


def mark_split_parameters(model: nn.Module) -> None:
    """Mark what tensor parallelism splits; unmarked parameters count as replicas in the gradient norm.

    Megatron-Core marks them only while it draws its own initial weights, which we do not let it do.
    """
    for module in model.modules():
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            axis = 0
        elif isinstance(module, RowParallelLinear):
            axis = 1
        else:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name == "weight" or axis == 0:
                parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
                parameter.partition_dim = axis  # type: ignore[attr-defined]
                parameter.partition_stride = 1  # type: ignore[attr-defined]
