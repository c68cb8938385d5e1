"""Writes a checkpoint in which a part of the linear layers' weights is zero."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from megalm.compress.calibrate import wanda_masks
from megalm.compress.masks import Sparsity, magnitude_mask
from megalm.compress.source import open_calibration_model, open_whole
from megalm.compress.text import Text
from megalm.config.suggest import nearest
from megalm.convert.checkpoint import entry
from megalm.convert.derived import changed, plain_config, write_derived
from megalm.errors import UserError
from megalm.model.quantized import is_linear_weight

PRUNINGS = ("magnitude", "wanda")


def prune_checkpoint(
    source: str | Path,
    target: str | Path,
    method: str,
    sparsity: Sparsity,
    open_text: Callable[..., Text] | None = None,
    step: int | str | None = None,
    dtype: str = "fp32",
) -> dict[str, Any]:
    """Write the model at `source` at `target` with as many weights of each linear layer zero as `sparsity` says.

    magnitude: the smallest weights of each matrix. wanda (arXiv:2306.11695): of each output those with the smallest |weight| x
    norm of the input; `open_text` opens the calibration text given (configuration, tokenizer), and the model computes in
    `dtype`. Embeddings, norms, biases, routers and the output layer stay. Returns what was made. Raises UserError for what
    cannot be; then nothing is left at `target`.
    """
    if method not in PRUNINGS:
        raise UserError(
            f"method {method!r} is unknown{nearest(method, PRUNINGS)} (known: {', '.join(PRUNINGS)})"
        )
    whole = open_whole(source, step)
    pruned = [name for name in whole.names if is_linear_weight(name)]
    for name in pruned:
        sparsity.check_inputs(name, whole.weights.outline(name).shape[1])
    masks: dict[str, Tensor] = {}
    if method == "wanda":
        if open_text is None:
            raise UserError(
                "wanda looks at what comes into the layers: name text or token files with --calibration"
            )
        engine, config, tokenizer = open_calibration_model(whole, dtype)
        masks = wanda_masks(engine, open_text(config, tokenizer), sparsity)
    counts = {"zeros": 0, "weights": 0}

    def masked(name: str) -> Callable[[Tensor], Tensor]:
        def apply(weight: Tensor) -> Tensor:
            mask = masks[name] if masks else magnitude_mask(weight.float(), sparsity)
            counts["zeros"] += int((~mask).sum())
            counts["weights"] += mask.numel()
            return weight * mask

        return apply

    chosen = set(pruned)
    entries = [
        changed(whole.weights, name, masked(name)) if name in chosen else entry(whole.weights, name)
        for name in whole.names
    ]
    write_derived(
        target,
        whole.folder,
        whole.config,
        plain_config(whole.config),
        entries,
        f"pruned, {method} {sparsity}",
    )
    return {
        "source": str(whole.folder),
        "method": method,
        "sparsity": str(sparsity),
        "zeros": counts["zeros"] / counts["weights"],
    }
