"""Weights in few bits that a layout or another section does not go with are refused here."""

from megalm.config.divides import divides
from megalm.config.schema import Config
from megalm.errors import UserError

FP8_MULTIPLE = 16


def check_quantization(config: Config) -> None:
    """Raise UserError if the section quantization does not go with the rest on any number of processes."""
    method, size = config.quantization.method, config.quantization.group_size
    if method == "none":
        return
    if config.lora.rank:
        raise UserError(
            f"lora.rank {config.lora.rank} on quantization.method {method}: adapters go on whole weights; make them by "
            "`megalm merge CHECKPOINT DEST`, or leave it to lora.quantize_base"
        )
    if config.engine == "deepspeed":
        raise UserError(
            f"quantization.method {method}: engine `deepspeed` casts and parts all that a model holds, also what is "
            "quantised; take engine=megatron"
        )
    if size is not None and (method == "fp8" or config.quantization.activations):
        raise UserError(
            f"quantization.group_size {size}: with fp8, and with activations, whole rows share a scale; leave it out"
        )
    if method == "int4" and size is None:
        raise UserError("quantization.method int4 needs groups: set quantization.group_size, e.g. 32")
    if method == "int4" and config.quantization.activations:
        raise UserError("quantization.activations with method int4: it is for int8 and fp8; set it to false")
    if size is not None:
        check_groups(config, "quantization.group_size", size)
    if method == "fp8":
        for name, (width, ranks) in _inputs(config).items():
            divides(f"{name} (of a rank)", width // ranks, "what fp8 needs:", FP8_MULTIPLE)


def check_groups(config: Config, field: str, size: int) -> None:
    """Raise UserError where groups of `size` weights along a layer's inputs do not fit a rank's part; `field` names the size."""
    for name, (width, ranks) in _inputs(config).items():
        part = f" (a rank's part of {width} / tensor_model_parallel_size {ranks})" if ranks > 1 else ""
        divides(f"{name}{part}", width // ranks, field, size)


def _inputs(config: Config) -> dict[str, tuple[int, int]]:
    """Widths of what goes into the linear layers, and over how many ranks each is cut."""
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    inputs = {"model.hidden_size": (model.hidden_size, 1)}
    inputs["attention's output, model.num_attention_heads x head width"] = (
        model.num_attention_heads * model.head_dim,
        tp,
    )
    layers = range(model.num_layers)
    if not all(map(model.moe.is_moe_layer, layers)):
        inputs["model.ffn_hidden_size"] = (model.ffn_size, tp)
    if any(map(model.moe.is_moe_layer, layers)):
        inputs["model.moe.moe_ffn_hidden_size"] = (model.expert_ffn_size, tp)
        if model.moe.shared_expert_ffn_hidden_size:
            inputs["model.moe.shared_expert_ffn_hidden_size"] = (model.moe.shared_expert_ffn_hidden_size, tp)
    return inputs
