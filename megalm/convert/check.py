"""Runs a model here and elsewhere on the same tokens, and tells how far the logits are apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalm.checkpoint import load_weights, read_config
from megalm.config import Config
from megalm.config.inference import for_inference
from megalm.config.lora import LoraConfig
from megalm.config.quantization import QuantizationConfig
from megalm.config.schema import ParallelConfig
from megalm.convert.source import InFormat, Source
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.model.init import canonical_name, sharded_parameters
from megalm.model.kernel_choice import without_unusable
from megalm.model.lora import is_adapter
from megalm.parallel.layout import Layout, create_layout
from megalm.quiet import quiet_output

ROWS, LENGTH = 2, 64
TOLERANCE = 1e-3
"""Largest difference of a logit, in units of the largest logit, that rounding in fp32 explains even in deep models."""


@torch.inference_mode()
def compare_logits(
    checkpoint: Path, hub_folder: Path, written: Source | None = None, adapters: Path | None = None
) -> dict[str, Any]:
    """`compare_with` the model in a directory of Hugging Face's, with PEFT's adapters if there are any.

    UserError, too, where transformers or PEFT is not installed.
    """
    config = read_config(checkpoint)

    def run(tokens_BS: Tensor) -> Tensor:
        return _their_logits(hub_folder, adapters, config, tokens_BS)

    return compare_with(checkpoint, run, written, merged=adapters is None)


@torch.inference_mode()
def compare_with(
    checkpoint: Path, run: Callable[[Tensor], Tensor], written: Source | None = None, merged: bool = True
) -> dict[str, Any]:
    """Largest difference of any logit on random tokens from what `run` makes of them, and the largest logit.

    run: (B, S) to (B, S, V), in fp32. written: what was written; our weights are rounded to its formats, for a checkpoint's may
    be wider (a run in bf16 keeps fp32 for its optimizer). merged: it has the adapters of the checkpoint, if any, in its
    weights. Raises UserError where the logits are further apart than rounding explains.
    """
    config = read_config(checkpoint)
    tokens_BS = _random_tokens(config)
    ours, theirs = _our_logits(checkpoint, config, tokens_BS, written, merged), run(tokens_BS)
    difference, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise UserError(
            f"the converted model's logits differ by {difference:.2e} from the source's (largest {largest:.3g}): it is "
            "another model than its settings say; --no-check converts all the same"
        )
    return {"difference": difference, "largest_logit": largest}


def _random_tokens(config: Config) -> Tensor:
    length = min(LENGTH, config.model.max_sequence_length)
    generator = torch.Generator().manual_seed(0)
    assert config.model.vocab_size is not None
    return torch.randint(config.model.vocab_size, (ROWS, length), generator=generator)


def _our_logits(
    checkpoint: Path, config: Config, tokens_BS: Tensor, written: Source | None, merged: bool
) -> Tensor:
    config = without_unusable(for_inference(config, ParallelConfig(), "fp32"))
    config.quantization.activations = False  # theirs computes with the weights that ours stand for
    # what merging rounds cannot be rounded in two parts, nor what codes stand for: then ours has the sums, too
    in_parts = (merged and config.lora.rank) or config.quantization.method != "none"
    sums = written if in_parts and written is not None and _is_narrow(written) else None
    if sums is not None:
        config.lora, config.quantization = LoraConfig(), QuantizationConfig()
    layout = create_layout(config.parallel)
    engine = build_engine(config, layout, train=False)
    if sums is None:
        load_weights(engine, checkpoint)
    if written is not None:
        _as_written(engine.model, layout, written, merged, sums is not None)
    engine.model.eval()
    output = engine.model(tokens_BS.to(layout.device))
    return (output[0] if isinstance(output, tuple) else output).cpu()


def _is_narrow(written: Source) -> bool:
    return any(dtype.itemsize < 4 for dtype in _formats(written, "embedding.word_embeddings.weight"))


def _formats(written: Source, name: str) -> list[torch.dtype]:
    """Those that a tensor has been through."""
    before = _formats(written.source, name) if isinstance(written, InFormat) else []
    return [*before, written.outline(name).dtype]


def _as_written(model: Any, layout: Layout, written: Source, merged: bool, taken_over: bool) -> None:
    """Round the weights to the formats in which they were written, or take over what was."""
    for shard in sharded_parameters(model, layout):
        name, data = canonical_name(shard), shard.data
        if data.is_meta or (merged and is_adapter(name)):
            continue
        if taken_over:
            first = shard.global_offset[shard.prepend_axis_num]  # of one half of a gated matrix
            rows = written.read(name)[first:]
            data = data.view(-1, *rows.shape[1:])
            data[: len(rows)].copy_(rows[: len(data)])
            continue
        for dtype in _formats(written, name):
            data.copy_(data.to(dtype))


def _their_logits(folder: Path, adapters: Path | None, config: Config, tokens_BS: Tensor) -> Tensor:
    try:
        with quiet_output():  # they import what they can use, and some of that complains of the machine
            import transformers

            if adapters is not None:
                from peft import PeftModel
    except ImportError as error:
        raise UserError(
            f"the comparison of both sides needs {error.name}; pip install {error.name}, or give --no-check"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bert = config.model.architecture == "bert"
    kind = transformers.AutoModelForPreTraining if bert else transformers.AutoModelForCausalLM
    with quiet_output():
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        if adapters is not None:
            model = PeftModel.from_pretrained(model, str(adapters))
    model.eval()
    output = model(tokens_BS)
    return output.prediction_logits if bert else output.logits
