"""Runs a model here and elsewhere on the same tokens, and tells how far the logits are apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalm.checkpoint import load_weights, read_config
from megalm.config import Config
from megalm.config.schema import ParallelConfig
from megalm.engine.build import build_engine
from megalm.errors import UserError
from megalm.parallel.layout import create_layout
from megalm.quiet import quiet_output

ROWS, LENGTH = 2, 64
TOLERANCE = 1e-3
"""Largest difference of a logit, in units of the largest logit, that rounding in fp32 explains even in deep models."""


@torch.inference_mode()
def compare_logits(checkpoint: Path, hub_folder: Path, adapters: Path | None = None) -> dict[str, Any]:
    """`compare_with` the model in a directory of Hugging Face's, with PEFT's adapters if there are any.

    UserError, too, where transformers or PEFT is not installed.
    """
    config = read_config(checkpoint)
    return compare_with(checkpoint, lambda tokens_BS: _their_logits(hub_folder, adapters, config, tokens_BS))


@torch.inference_mode()
def compare_with(checkpoint: Path, run: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Largest difference of any logit on random tokens from what `run` makes of them, and the largest logit.

    run: (B, S) to (B, S, V), in fp32. Raises UserError where they are further apart than rounding explains.
    """
    config = read_config(checkpoint)
    tokens_BS = _random_tokens(config)
    ours, theirs = _our_logits(checkpoint, config, tokens_BS), run(tokens_BS)
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


def _our_logits(checkpoint: Path, config: Config, tokens_BS: Tensor) -> Tensor:
    config = config.model_copy(deep=True)
    config.parallel = ParallelConfig()
    config.engine = "megatron"
    config.precision.dtype = "fp32"
    layout = create_layout(config.parallel)
    engine = build_engine(config, layout, train=False)
    load_weights(engine, checkpoint)
    engine.model.eval()
    output = engine.model(tokens_BS.to(layout.device))
    return (output[0] if isinstance(output, tuple) else output).cpu()


def _their_logits(folder: Path, adapters: Path | None, config: Config, tokens_BS: Tensor) -> Tensor:
    try:
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
    with quiet_output():  # it imports what it can use, and some of that complains of the machine
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        if adapters is not None:
            model = PeftModel.from_pretrained(model, str(adapters))
    model.eval()
    output = model(tokens_BS)
    return output.prediction_logits if bert else output.logits
