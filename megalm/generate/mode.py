"""Puts a model that may be in training into the state in which it decodes, and back."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

# what makes a module compute a part of each sequence: its tensor-parallel rank's or its context-parallel rank's
_SPLIT_SEQUENCES = ("sequence_parallel", "reduce_scatter_embeddings", "shares_context")


@contextlib.contextmanager
def decoding(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it the model is `at_rest`, and makes no graph."""
    with at_rest(chunks), torch.inference_mode():
        yield


@contextlib.contextmanager
def at_rest(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it the model has no dropout, runs uncompiled, and each rank computes whole sequences.

    Decoding passes one position at a time, which cannot be split along the sequence: under sequence parallelism the
    tensor-parallel ranks do twice what they share otherwise, under context parallelism each rank has a whole model anyway.
    At the end everything is as it was.
    """
    modules = [module for chunk in chunks for module in chunk.modules()]
    configs = {id(config): config for m in modules if (config := getattr(m, "config", None)) is not None}
    split = [
        (owner, name)
        for owner in (*modules, *configs.values())
        for name in _SPLIT_SEQUENCES
        if vars(owner).get(name) is True
    ]
    training = [module for module in modules if module.training]
    # graphs would be compiled anew for each length of the cache
    is_compiled = any(module._compiled_call_impl for module in modules)
    stance: Any = torch.compiler.set_stance("force_eager") if is_compiled else contextlib.nullcontext()
    try:
        for owner, name in split:
            setattr(owner, name, False)
        for module in training:
            module.training = False
        with stance:
            yield
    finally:
        for owner, name in split:
            setattr(owner, name, True)
        for module in training:
            module.training = True
