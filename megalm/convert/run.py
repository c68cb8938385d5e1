"""Converts what lies in one directory into another form, telling by itself what it is."""

from pathlib import Path
from typing import Any

from megalm.checkpoint.directory import find_checkpoint, read_config, refuse_among_checkpoints
from megalm.config.suggest import nearest
from megalm.convert.hugging_face import from_hugging_face, to_hugging_face
from megalm.convert.megatron_lm import from_megatron_lm, is_megatron_lm, to_megatron_lm
from megalm.convert.peft import to_peft
from megalm.errors import UserError

FORMS = ("hf", "megalm", "megatron-lm", "peft")
DTYPES = ("fp32", "bf16", "fp16")
IMPLEMENTATIONS = ("transformer_engine", "local")


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    compare: bool = True,
    step: int | str | None = None,
    family: str | None = None,
    like: str | Path | None = None,
    dtype: str | None = None,
    vocab_size: int | None = None,
    tokenizer: str | Path | None = None,
    tensor_ranks: int | None = None,
    pipeline_ranks: int | None = None,
    transformer_impl: str | None = None,
) -> dict[str, Any]:
    """Write the model at `source` to `target` in the form `to`: `hf`, `megalm`, `megatron-lm` or `peft`.

    By default checkpoints of ours become Hugging Face's, and all others ours. step: which checkpoint of a run of ours.
    compare, family, like, dtype: see `to_hugging_face` (for PEFT `like` is the model that is adapted); vocab_size,
    tokenizer: see `from_megatron_lm`; tensor_ranks, pipeline_ranks, transformer_impl: see `to_megatron_lm`. Returns what was
    converted, and where both were compared how far their logits are apart. Raises UserError for what cannot be converted;
    then nothing is left at `target`.
    """
    source = Path(source)
    found = form_of(source)
    to = to or ("hf" if found == "megalm" else "megalm")
    if to not in FORMS:
        raise UserError(f"--to {to!r} is unknown{nearest(to, FORMS)} (known: {', '.join(FORMS)})")
    if to == found:
        raise UserError(f"{source} is in the form {to} already; give another --to")
    if "megalm" not in (found, to):
        raise UserError(f"{source} is in the form {found}: convert it to megalm first, and that to {to}")
    given: dict[str, Any] = {
        "step": step,
        "family": family,
        "like": like,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer,
        "tensor_ranks": tensor_ranks,
        "pipeline_ranks": pipeline_ranks,
        "transformer_impl": transformer_impl,
    }
    _refuse_useless(given, found, to)
    refuse_among_checkpoints(target)
    if found == "megalm":
        checkpoint = find_checkpoint(source, step)
        if outputs := read_config(checkpoint).model.sequence_head.outputs:
            raise UserError(
                f"{checkpoint} has a sequence head of {outputs} outputs, which is not converted: convert the model that it "
                "was trained from"
            )
    if found == "hf":
        return from_hugging_face(source, target, compare)
    if found == "megatron-lm":
        return from_megatron_lm(source, target, vocab_size, tokenizer, compare)
    if to == "hf":
        _check_named("dtype", dtype, DTYPES)
        return to_hugging_face(source, target, family, like, dtype, compare, step)
    if to == "peft":
        return to_peft(source, target, step, like, compare)
    _check_named("transformer-impl", transformer_impl, IMPLEMENTATIONS)
    ranks = (tensor_ranks or 1, pipeline_ranks or 1) if tensor_ranks or pipeline_ranks else None
    return to_megatron_lm(source, target, step, ranks, transformer_impl == "local", compare)


def form_of(source: Path) -> str:
    """`megalm` for a run or a checkpoint, `megatron-lm` for one of theirs, else `hf`; UserError where nothing is."""
    if not source.is_dir():
        raise UserError(f"{source}: no such directory")
    if (source / "manifest.json").is_file() or (source / "checkpoints").is_dir():
        return "megalm"
    return "megatron-lm" if is_megatron_lm(source) else "hf"


_MEANT_FOR = {
    ("hf", "megalm"): (),
    ("megatron-lm", "megalm"): ("vocab_size", "tokenizer"),
    ("megalm", "hf"): ("step", "family", "like", "dtype"),
    ("megalm", "peft"): ("step", "like"),
    ("megalm", "megatron-lm"): ("step", "tensor_ranks", "pipeline_ranks", "transformer_impl"),
}


def _refuse_useless(given: dict[str, Any], found: str, to: str) -> None:
    for name, value in given.items():
        if value is not None and name not in _MEANT_FOR[found, to]:
            option = name.replace("_", "-")
            raise UserError(f"--{option} does nothing in a conversion from {found} to {to}; leave it out")


def _check_named(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise UserError(f"--{option} {value!r} is unknown{nearest(value, known)} (known: {', '.join(known)})")
