"""Takes parameters out of training, and sees to it that the others still get their gradients."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from megalm.config.schema import Config, TrainConfig
from megalm.errors import UserError
from megalm.model.lora import ask_for_gradient
from megalm.model.parameters import check_patterns, depth, gather_names, matches, parameter_names
from megalm.parallel.layout import Layout

_TRAINED = "!"


def freezes(config: Config) -> bool:
    """Whether the configuration takes parameters out of training, those of some layers maybe."""
    return bool(config.train.freeze) or config.train.train_last_layers is not None


def freeze(chunks: Sequence[Any], config: Config, layout: Layout) -> None:
    """Freeze what `train.freeze` and `train.train_last_layers` name; what is frozen already (by adapters) stays so.

    chunks: this process's parts of the model, before anything wraps them. Collective. Raises UserError for a pattern that
    fits no parameter of the model, and if nothing is left to train.
    """
    train = config.train
    if not freezes(config):
        return
    names = parameter_names(chunks, layout)
    patterns = [pattern.removeprefix(_TRAINED) for pattern in train.freeze]
    if not layout.without_memory:  # a rehearsal sees one stage of the pipeline
        check_patterns("train.freeze", patterns, gather_names(names.values(), layout))
    for parameter, name in names.items():
        if is_frozen(name, train, config.model.num_layers):
            parameter.requires_grad_(False)
    trained = gather_names((name for parameter, name in names.items() if parameter.requires_grad), layout)
    if not trained and not layout.without_memory:
        raise UserError("train.freeze and train.train_last_layers leave nothing to train: freeze less")
    recomputed = train.recompute.granularity != "none"
    for chunk in chunks:
        ask_for_gradients(chunk, recomputed, layout.pp_size > 1)


def is_frozen(name: str, train: TrainConfig, num_layers: int) -> bool:
    """Whether the configuration takes the parameter of this name out of training."""
    last = train.train_last_layers
    frozen = last is not None and depth(name, num_layers) <= num_layers - last
    for pattern in train.freeze:
        if matches(name, [pattern.removeprefix(_TRAINED)]):
            frozen = not pattern.startswith(_TRAINED)
    return frozen


def ask_for_gradients(model: nn.Module, recomputed: bool, sent_on: bool) -> None:
    """Let hidden states ask for gradients where frozen embeddings would not, but something needs them to.

    recomputed: layers that are computed again have gradients only if their input asks for one. sent_on: the schedule of a
    pipeline runs the backward pass of every stage; of one without anything to train it is empty.
    """
    embedding = getattr(model, "embedding", None)
    if not isinstance(embedding, nn.Module):
        return
    layers: Any = model.decoder if hasattr(model, "decoder") else model.encoder
    if recomputed and any(parameter.requires_grad for parameter in model.parameters()):
        embedding.register_forward_hook(ask_for_gradient)
    if sent_on:
        layers.register_forward_hook(ask_for_gradient)
