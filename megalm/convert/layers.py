"""Makes a shallower model of a trained one: some of its layers, with everything around them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megalm.checkpoint.directory import find_checkpoint, read_config
from megalm.checkpoint.metadata import read_tensors
from megalm.config.model import ModelConfig
from megalm.convert.checkpoint import entry
from megalm.convert.derived import plain_config, write_derived
from megalm.convert.merge import parameter_names, with_weights
from megalm.convert.source import open_source
from megalm.errors import UserError


def keep_layers(
    source: str | Path, target: str | Path, layers: Sequence[int], texts: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write a checkpoint at `target` whose layer i is layer `layers[i]` of `source`, adapters added to the weights.

    The embedding, the last norm and the output matrix are kept (DistilBERT starts so, arXiv:1910.01108, section 3). A
    tensor at a time is in memory; the optimizer is left out. texts: files to put beside the weights, by name. Raises UserError for layers that the model does not have;
    then nothing is left at `target`.
    """
    folder = find_checkpoint(source)
    config = read_config(folder)
    check_layers(config.model, layers, folder)
    opened = open_source(folder, config)
    names = list(parameter_names(read_tensors(with_weights(folder, config)), config.model))
    smaller = plain_config(config)
    smaller.model.num_layers = len(layers)
    entries = [entry(opened, new, old) for new, old in _renamed(names, layers)]
    write_derived(target, folder, config, smaller, entries, f"layers {list(layers)} kept", texts)
    return {"source": str(folder), "layers": list(layers), "parameters": smaller.model.num_parameters()}


def check_layers(model: ModelConfig, layers: Sequence[int], folder: Path) -> None:
    """Raise UserError where the model has no such layers, or experts would land in a layer that has none."""
    if not layers or min(layers) < 0 or max(layers) >= model.num_layers:
        raise UserError(
            f"{folder} has the layers 0 to {model.num_layers - 1}, asked for are {list(layers)}: name some of them"
        )
    for new, old in enumerate(layers):
        if model.moe.is_moe_layer(new) != model.moe.is_moe_layer(old):
            raise UserError(
                f"layer {old} of {folder} cannot become layer {new}: one of them has experts "
                f"(model.moe.layer_frequency {model.moe.layer_frequency}), the other none"
            )


def _renamed(names: Sequence[str], layers: Sequence[int]) -> Iterator[tuple[str, str]]:
    """(New name, name in the source) of each parameter that is kept."""
    for name in names:
        found = re.search(r"\.layers\.(\d+)\.", name)
        if found is None:
            yield name, name
            continue
        for new, old in enumerate(layers):
            if old == int(found[1]):
                yield name.replace(found[0], f".layers.{new}."), name
