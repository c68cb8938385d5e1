"""The model that the configuration names, with its initial weights."""

from typing import TypeAlias

from megalm.config.schema import Config
from megalm.model.bert import Bert
from megalm.model.gpt import GPT
from megalm.model.init import initialize
from megalm.model.lora import attach_adapters, linear_layers
from megalm.parallel.layout import Layout

Model: TypeAlias = GPT | Bert


def build_chunks(config: Config, layout: Layout) -> list[Model]:
    """Build all that this process holds of the model, in the order of its layers: `layout.vp_size` parts."""
    return [build_model(config, layout, chunk) for chunk in range(layout.vp_size)]


def build_model(config: Config, layout: Layout, chunk: int = 0) -> Model:
    """Build one part of the model on this process with weights that depend on `run.seed` alone."""
    architecture = Bert if config.model.architecture == "bert" else GPT
    model: Model = architecture(config, layout, chunk)
    if config.lora.rank:
        attach_adapters(model, config.lora)
    if model.config.weight_form is not None:
        for _, layer in linear_layers(model):
            layer.quantize(model.config.weight_form)
    initialize(model, config, layout)
    return model
