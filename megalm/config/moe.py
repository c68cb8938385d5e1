"""The section `model.moe`: mixture of experts."""

from typing import Literal

from pydantic import Field

from megalm.config.section import Section


class MoEConfig(Section):
    """Mixture of experts: MLPs of which a router picks a few for each token (arXiv:1701.06538, 2101.03961)."""

    num_experts: int = Field(0, ge=0, description="Experts of a layer; 0: every layer is dense.")
    router_top_k: int = Field(2, gt=0, description="Experts that each token goes to.")
    moe_ffn_hidden_size: int | None = Field(
        None, gt=0, description="Width inside an expert; default: `model.ffn_hidden_size`."
    )
    shared_expert_ffn_hidden_size: int | None = Field(
        None,
        gt=0,
        description="Width inside the expert that every token goes to as well; default: there is none.",
    )
    layer_frequency: int = Field(
        1, gt=0, description="Layers 0, n, 2n, ... have experts, those between are dense."
    )
    score_function: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="What turns the router's logits into scores."
    )
    norm_topk_prob: bool = Field(
        True,
        description="The weights of a token's experts sum to one, as in Mixtral; else they are the scores themselves.",
    )
    aux_loss: Literal["sequence", "batch", "none"] = Field(
        "sequence",
        description="Load-balancing loss, over each sequence (the same under every layout and microbatch size) or over "
        "each microbatch of a data-parallel rank (depends on both).",
    )
    aux_loss_coeff: float = Field(
        0.01, ge=0, description="Weight of the load-balancing loss of each layer of experts."
    )
    z_loss_coeff: float = Field(
        0.0, ge=0, description="Weight of the squared log-partition of the router's logits (ST-MoE), a layer."
    )
    capacity_factor: float | None = Field(
        None,
        gt=0,
        description="In training an expert takes at most this times its even share of a rank's microbatch and drops "
        "the rest, which depends on layout and microbatch size; default: nothing is dropped.",
    )
    dispatcher: Literal["auto", "allgather", "alltoall"] = Field(
        "auto",
        description="How tokens travel to other ranks' experts: `allgather` shows all tokens to all ranks, `alltoall` sends "
        "each where it goes; `auto`: `alltoall` on NCCL.",
    )

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer number `layer`, counted from 0, has experts."""
        return self.num_experts > 0 and layer % self.layer_frequency == 0
