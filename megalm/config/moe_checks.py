"""Mixtures of experts that cannot work, alone or under the layout, are refused here with the arithmetic."""

from megalm.config.divides import divides
from megalm.config.schema import Config
from megalm.errors import UserError


def check_moe(config: Config) -> None:
    """Raise UserError if the section model.moe fits neither itself nor the rest on any number of processes."""
    moe, parallel = config.model.moe, config.parallel
    ep = parallel.expert_model_parallel_size
    if not moe.num_experts:
        if ep > 1:
            raise UserError(
                f"parallel.expert_model_parallel_size {ep} shares out experts, but model.moe.num_experts is 0: "
                "set it, or expert_model_parallel_size to 1"
            )
        return
    if config.engine != "megatron":
        raise UserError(
            f"model.moe.num_experts {moe.num_experts}: engine `{config.engine}` trains dense models; use engine `megatron`"
        )
    _check_routing(config)
    _check_divisions(config)
    if config.model.add_bias_linear:
        raise UserError("model.add_bias_linear with model.moe: experts have no biases; set it to false")


def check_expert_ranks(config: Config, data_parallel_size: int) -> None:
    """Raise UserError unless expert parallelism divides the ranks that it lies across: DP x CP."""
    ep, cp = config.parallel.expert_model_parallel_size, config.parallel.context_parallel_size
    ranks = data_parallel_size * cp
    if ranks % ep:
        raise UserError(
            f"parallel.expert_model_parallel_size {ep} does not divide the {ranks} ranks that it lies across "
            f"(data-parallel size {data_parallel_size} x context_parallel_size {cp}): lower it, or use more processes"
        )


def _check_routing(config: Config) -> None:
    moe = config.model.moe
    if moe.router_top_k > moe.num_experts:
        raise UserError(
            f"model.moe.router_top_k {moe.router_top_k} exceeds num_experts {moe.num_experts}: lower it"
        )
    if moe.router_top_k == 1 and moe.norm_topk_prob:
        raise UserError(
            "model.moe.router_top_k 1 with norm_topk_prob: every weight would be 1 and the router learn nothing from "
            "the task; set norm_topk_prob to false"
        )


def _check_divisions(config: Config) -> None:
    model, parallel = config.model, config.parallel
    tp = "parallel.tensor_model_parallel_size", parallel.tensor_model_parallel_size
    ep = "parallel.expert_model_parallel_size", parallel.expert_model_parallel_size
    sizes = [
        ("model.moe.num_experts", model.moe.num_experts, *ep),
        ("model.moe.moe_ffn_hidden_size", model.expert_ffn_size, *tp),
        ("model.moe.shared_expert_ffn_hidden_size", model.moe.shared_expert_ffn_hidden_size or 0, *tp),
    ]
    for size in sizes:
        divides(*size)
