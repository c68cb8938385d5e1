"""torch.compile of a model in place: its parameters keep their names, so that checkpoints and initial weights do not notice."""

import functools

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

from megalm.config.schema import Config
from megalm.model import attention, lora
from megalm.model.attention import CoreAttention

# A graph each for training, validation and recompute, with and without what the first layer prepares for the others.
GRAPHS_OF_ONE_FUNCTION = 32


def compile_model(model: nn.Module, config: Config) -> None:
    """Have torch.compile take over each transformer layer (`train.compile: blocks`) or the whole `model`, at the first call."""
    how, sizes = config.train.compile, config.model
    if how == "none":
        return
    _leave_out_functions()
    options = {}
    if sizes.hidden_dropout or sizes.attention_dropout:
        # dropout then draws what it draws uncompiled: masks are right again when a layer is recomputed
        options["fallback_random"] = True
    if sizes.attention_dropout:
        _leave_out_random_states(model)
    torch._dynamo.config.recompile_limit = GRAPHS_OF_ONE_FUNCTION
    parts = [m for m in model.modules() if isinstance(m, TransformerLayer)] if how == "blocks" else [model]
    for part in parts:
        part.compile(options=options or None)


@functools.cache
def _leave_out_functions() -> None:
    """Functions that cannot be traced: attention over ranks' tokens, and dropout that swaps states of the random generator.

    Not by a decorator where they are defined, which would import torch's compiler (0.75 s) into every process.
    """
    for module, name in ((attention, "attend_over_context"), (lora, "_dropout")):
        setattr(module, name, torch.compiler.disable(getattr(module, name)))


def _leave_out_random_states(model: nn.Module) -> None:
    """Dropout of attention weights swaps states of the random generator, which cannot be traced."""
    for module in model.modules():
        if isinstance(module, CoreAttention):
            module._attend = torch.compiler.disable(module._attend)  # type: ignore[method-assign]
