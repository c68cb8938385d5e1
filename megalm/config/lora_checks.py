"""Adapters that cannot be, and frozen models that cannot be quantised under the layout, are refused here."""

from megalm.config.quantization_checks import check_groups
from megalm.config.schema import Config
from megalm.errors import UserError


def check_lora(config: Config) -> None:
    """Raise UserError if the section lora does not go with the rest on any number of processes."""
    lora = config.lora
    if not lora.rank:
        if lora.quantize_base != "none":
            raise UserError(
                f"lora.quantize_base {lora.quantize_base} with lora.rank 0: weights that are trained are not quantised; "
                "set lora.rank, or quantize_base=none"
            )
        return
    if not config.run.load:
        raise UserError(f"lora.rank {lora.rank} adapts a trained model: name its checkpoint in run.load")
    if config.precision.fp8 != "none":
        raise UserError(
            f"lora.rank {lora.rank}: adapters do not go with precision.fp8 `{config.precision.fp8}`; set it to none"
        )
    if lora.experts and not config.model.moe.num_experts:
        raise UserError("lora.experts, but model.moe.num_experts is 0: there are none; set it to false")
    if lora.experts and not {"linear_fc1", "linear_fc2"} & set(lora.targets):
        raise UserError(
            f"lora.experts, but lora.targets names {', '.join(lora.targets)}: experts have linear_fc1 and linear_fc2; "
            "name one of them, or set lora.experts to false"
        )
    if lora.quantize_base != "none":
        _check_quantized(config)


def _check_quantized(config: Config) -> None:
    if config.engine == "deepspeed":
        raise UserError(
            f"lora.quantize_base {config.lora.quantize_base}: engine `deepspeed` casts and parts all that a model holds, "
            "also what is quantised; take engine=megatron, or quantize_base=none"
        )
    check_groups(config, "lora.quantize_group_size", config.lora.quantize_group_size)
