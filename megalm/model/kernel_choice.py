"""Refuses kernels named in the configuration that cannot be used on this machine or for this model, and replaces them on request."""

from dataclasses import dataclass

import torch

from megalm import kernels
from megalm.config.schema import Config
from megalm.errors import UserError
from megalm.parallel.backend import backend_for

COMPILER = "a compiler"
HALF = ("bf16", "fp16")
FLOATING = ("fp32", *HALF)


@dataclass(frozen=True)
class Needs:
    """What a choice asks for: a package or tool that `megalm doctor` lists, and a number format of the run."""

    package: str
    dtypes: tuple[str, ...] = FLOATING


_TE, _LIGER, _APEX = kernels.TRANSFORMER_ENGINE.name, kernels.LIGER.name, kernels.APEX.name
_ANY = (*FLOATING, "fp64")

# (field, name) -> what it asks for; what is not here runs everywhere
NEEDS = {
    ("model.attention", "flash"): Needs(kernels.FLASH_ATTN.name, HALF),
    ("model.attention", "te"): Needs(_TE, HALF),
    ("model.norm", "te"): Needs(_TE),
    ("model.norm", "liger"): Needs(_LIGER),
    ("model.norm", "apex"): Needs(_APEX),
    ("model.activation_kernel", "liger"): Needs(_LIGER),
    ("model.activation_kernel", "compile"): Needs(COMPILER, _ANY),
    ("model.rope_kernel", "liger"): Needs(_LIGER),
    ("model.rope_kernel", "te"): Needs(_TE),
    ("model.cross_entropy", "liger"): Needs(_LIGER),
    ("optimizer.kernel", "apex"): Needs(_APEX),
    ("precision.fp8", "e4m3"): Needs(_TE, ("bf16",)),
    ("precision.fp8", "hybrid"): Needs(_TE, ("bf16",)),
    ("train.compile", "blocks"): Needs(COMPILER, _ANY),
    ("train.compile", "model"): Needs(COMPILER, _ANY),
}

# kernels of attention without a mask
CAUSAL = ("flash", "te", "matmul")

FP8_MULTIPLE = 16
FP8_CAPABILITY = (8, 9)


def check_kernels(config: Config, here: bool = True) -> None:
    """Raise UserError, one line, for a kernel by name that cannot be used here or for this model; needs no process group.

    Without `here` only for what no machine could do with this model and layout.
    """
    for field, problem in (problems(config) if here else _misfits(config)).items():
        section, name = field.split(".")
        default = type(getattr(config, section)).model_fields[name].default
        raise UserError(
            f"{field} is `{getattr(getattr(config, section), name)}`, but {problem}: take `{default}`"
        )
    if here:
        _check_dispatcher(config)


def _check_dispatcher(config: Config) -> None:
    unequal = config.model.moe.num_experts and config.parallel.sequence_parallel
    if (
        unequal
        and config.model.moe.dispatcher == "alltoall"
        and backend_for(config.parallel.backend) == "gloo"
    ):
        raise UserError(
            "model.moe.dispatcher is `alltoall`, but with parallel.sequence_parallel it gathers parts of different sizes, "
            "which the backend gloo does not: take `allgather`"
        )


def without_unusable(config: Config) -> Config:
    """A copy in which each kernel that cannot be used here is the default: for weights that were trained elsewhere."""
    config = config.model_copy(deep=True)
    for field in problems(config):
        section, name = field.split(".")
        part = getattr(config, section)
        setattr(part, name, type(part).model_fields[name].default)
    return config


def problems(config: Config) -> dict[str, str]:
    """What stands against each kernel that the configuration names, by field; empty if all can be used."""
    return _misfits(config) | _missing(config)


def _chosen(config: Config) -> dict[str, Needs]:
    sections = config.model_dump(include={"model", "optimizer", "precision", "train"})
    return {
        field: needs
        for (field, name), needs in NEEDS.items()
        if sections[field.split(".")[0]][field.split(".")[1]] == name
    }


def _missing(config: Config) -> dict[str, str]:
    """Choices that this machine lacks the package, the tool or the GPU for."""
    found = {}
    for field, needs in _chosen(config).items():
        package = needs.package
        if package == COMPILER:
            package = kernels.TRITON.name if torch.cuda.is_available() else kernels.CXX.name
        kernel = kernels.detect()[package]
        if not kernel.usable:
            found[field] = f"{package} cannot be used here ({kernel.problem}; see docs/install.md)"
        elif field == "precision.fp8" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
            major, minor = torch.cuda.get_device_capability()
            found[field] = f"it needs compute capability 8.9 and this GPU has {major}.{minor}"
    return found


def _misfits(config: Config) -> dict[str, str]:
    """Choices that are not made for this model, number format or layout."""
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    found = {
        field: f"it computes in {', '.join(needs.dtypes)} and precision.dtype is {config.precision.dtype}"
        for field, needs in _chosen(config).items()
        if config.precision.dtype not in needs.dtypes
    }
    if model.attention in ("flash", "te"):
        if model.position_embedding == "alibi":
            found["model.attention"] = "it takes no bias, which position_embedding `alibi` is"
        elif model.head_dim > 256 or model.head_dim % 8:
            found["model.attention"] = (
                f"it takes heads whose width is a multiple of 8 up to 256, and here it is {model.head_dim}"
            )
    if config.data.documents_apart and _wants_no_mask(config):
        setting = "packing" if config.data.packing else "reset_at_document_end"
        found["model.attention"] = f"it takes no mask, which data.{setting} makes here"
    if model.attention == "matmul" and model.attention_dropout:
        found["model.attention"] = (
            f"it drops no weights and model.attention_dropout is {model.attention_dropout}"
        )
    if model.activation_kernel == "liger" and model.activation != "swiglu":
        found["model.activation_kernel"] = f"it knows swiglu alone and model.activation is {model.activation}"
    elif model.activation_kernel in ("compile", "liger") and all(
        model.moe.is_moe_layer(layer) for layer in range(model.num_layers)
    ):
        found["model.activation_kernel"] = "every layer has experts, which are not made for it"
    if model.cross_entropy == "liger" and tp > 1:
        found["model.cross_entropy"] = f"it wants all columns on one rank and TP is {tp}"
    if config.precision.fp8 != "none" and (misfit := _fp8_misfit(config)):
        found["precision.fp8"] = misfit
    if config.engine == "deepspeed":
        for field, default, value in (
            ("train.compile", "none", config.train.compile),
            ("optimizer.kernel", "auto", config.optimizer.kernel),
            ("precision.fp8", "none", config.precision.fp8),
        ):
            if value != default:
                found[field] = "engine `deepspeed` does not offer it"
    if model.architecture != "gpt":
        named = {
            "model.attention": model.attention in CAUSAL,
            "model.norm": model.norm == "te",
            "model.cross_entropy": model.cross_entropy != "auto",
            "precision.fp8": config.precision.fp8 != "none",
        }
        for field in (field for field, is_named in named.items() if is_named):
            found[field] = f"model.architecture `{model.architecture}` does not offer it"
    return found


def _wants_no_mask(config: Config) -> bool:
    """Whether the attention would be torch's wherever there is a mask; `flash` knows documents, but not under CP."""
    attention = config.model.attention
    return attention in CAUSAL and (attention != "flash" or config.parallel.context_parallel_size > 1)


def _fp8_misfit(config: Config) -> str:
    model, tp = config.model, config.parallel.tensor_model_parallel_size
    if model.moe.num_experts:
        return "experts are not made for it"
    tokens = config.batch.seq_length * config.batch.micro_batch_size
    sizes = {
        "hidden_size": model.hidden_size,
        "ffn_hidden_size / TP": model.ffn_size // tp,
        "heads x width / TP": model.num_attention_heads * model.head_dim // tp,
        "key/value heads x width / TP": model.query_groups * model.head_dim // tp,
        "tokens of a microbatch / CP": tokens // config.parallel.context_parallel_size,
    }
    for name, size in sizes.items():
        if size % FP8_MULTIPLE:
            return f"it multiplies in multiples of {FP8_MULTIPLE} and {name} is {size}"
    return ""
