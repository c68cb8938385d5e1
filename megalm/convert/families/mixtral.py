"""Mixtral (arXiv:2401.04088): a Mistral whose MLPs are experts behind a router."""

from collections.abc import Mapping
from typing import Any, ClassVar

from megalm.config.model import ModelConfig
from megalm.convert.families.base import Fixed
from megalm.convert.families.llama import Mistral
from megalm.convert.rules import Rule, stacked


class Mixtral(Mistral):
    """`MixtralForCausalLM`."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    has_experts = True
    defaults: ClassVar[Fixed] = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6}

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See Family."""
        moe = {
            "num_experts": config["num_local_experts"],
            "router_top_k": config["num_experts_per_tok"],
            "norm_topk_prob": True,
            "aux_loss_coeff": config.get("router_aux_loss_coef", 0.001),
        }
        return {**super().fields(config), "moe": moe}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        """See Family."""
        return {
            **super().config(model),
            "num_local_experts": model.moe.num_experts,
            "num_experts_per_tok": model.moe.router_top_k,
            "router_aux_loss_coef": model.moe.aux_loss_coeff,
            "intermediate_size": model.expert_ffn_size,
        }

    def difference(self, model: ModelConfig) -> str | None:
        """See Family."""
        moe = model.moe
        if moe.layer_frequency != 1 or moe.shared_expert_ffn_hidden_size:
            return "experts in every layer and no shared one"
        if moe.score_function != "softmax" or not moe.norm_topk_prob:
            return "a softmax over the experts chosen"
        return super().difference(model)

    def mlp_rules(self, model: ModelConfig, ours: str, theirs: str) -> list[Rule]:
        """See Llama; w1 is the gate, w3 what it gates, w2 the way back."""
        moe = f"{theirs}.block_sparse_moe"
        rules = [Rule(f"{ours}.router.weight", (f"{moe}.gate.weight",))]
        for expert in range(model.moe.num_experts):
            mine, part = f"{ours}.experts.{expert}.experts", f"{moe}.experts.{expert}"
            rules.append(stacked(f"{mine}.linear_fc1.weight", [f"{part}.w1.weight", f"{part}.w3.weight"]))
            rules.append(Rule(f"{mine}.linear_fc2.weight", (f"{part}.w2.weight",)))
        return rules
