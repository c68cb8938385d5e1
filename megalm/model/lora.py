"""Low-rank adapters beside the linear layers, cut over the tensor-parallel ranks as these are (arXiv:2106.09685)."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import Tensor, nn

from megalm.config.lora import ALL_TARGETS, LoraConfig
from megalm.model.shared import Shared


def _dropout(x: Tensor, share: float, parted: bool) -> Tensor:
    with get_cuda_rng_tracker().fork() if parted else nullcontext():
        return F.dropout(x, share)


class Adapter(nn.Module):
    """scale x B A x. a: (rank, inputs), b: (outputs, rank), less what other tensor-parallel ranks hold of them.

    Beside a layer with cut outputs b is cut by rows; beside one with cut inputs a is cut by columns. The other factor is
    the same on all ranks, and so is its gradient: without sequence parallelism because what crosses the cut is summed on
    the way back, with it because each rank's part of the sequence is summed at the end of the step, as for norms.

    Beside an expert's layer nothing crosses the cut: all ranks have the expert's tokens, and what they make of them is
    summed behind the experts. There the gradient of the factor that is the same on all is summed on its way back.
    """

    cut: str
    """The factor of which each rank holds a part."""

    def __init__(self, layer: Any, lora: LoraConfig, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale, self.dropout = lora.scale, lora.dropout
        self.group, self.is_expert = layer.tp_group, layer.is_expert
        self.sequence_parallel = layer.sequence_parallel and not layer.is_expert
        self.crosses = self.group.size() > 1 and not layer.is_expert
        weight = layer.weight
        self.a = nn.Parameter(weight.new_empty(lora.rank, inputs))
        self.b = nn.Parameter(weight.new_empty(outputs, lora.rank))
        for name, axis in (("a", 1), ("b", 0)):
            parameter = getattr(self, name)
            parameter.allreduce = getattr(weight, "allreduce", True)
            if name == self.cut:
                parameter.tensor_model_parallel = True
                parameter.partition_dim, parameter.partition_stride = axis, 1
            else:
                parameter.sequence_parallel = self.sequence_parallel

    def _dropped(self, x: Tensor, parted: bool) -> Tensor:
        """parted: x is this rank's part of something, so that what is dropped is another draw on each rank."""
        return _dropout(x, self.dropout, parted) if self.dropout and self.training else x

    def _same(self, factor: Tensor) -> Tensor:
        """The factor that is not cut."""
        if self.is_expert and self.group.size() > 1:
            factor = Shared.apply(factor, self.group)
        return factor


class ColumnAdapter(Adapter):
    """Beside a layer whose outputs are cut over the ranks."""

    cut = "b"

    def forward(self, x: Tensor) -> Tensor:
        """Map (S or this rank's part of it, B, inputs) to (S, B, this rank's outputs)."""
        narrow = F.linear(self._dropped(x, self.sequence_parallel), self._same(self.a))
        if self.crosses:
            if self.sequence_parallel:
                narrow = gather_from_sequence_parallel_region(narrow, group=self.group)
            else:
                narrow = copy_to_tensor_model_parallel_region(narrow, group=self.group)
        return F.linear(narrow, self.b) * self.scale


class RowAdapter(Adapter):
    """Beside a layer whose inputs are cut over the ranks."""

    cut = "a"

    def forward(self, x: Tensor) -> Tensor:
        """Map (S, B, this rank's inputs) to (S or this rank's part of it, B, outputs)."""
        narrow = F.linear(self._dropped(x, self.group.size() > 1), self.a)
        if self.crosses:
            if self.sequence_parallel:
                narrow = reduce_scatter_to_sequence_parallel_region(narrow, group=self.group)
            else:
                narrow = reduce_from_tensor_model_parallel_region(narrow, group=self.group)
        return F.linear(narrow, self._same(self.b)) * self.scale


def initial_std(name: str, inputs: int) -> float | None:
    """Standard deviation of an adapter's factor at the start, None for other parameters; b is zero.

    a has the variance of the uniform distribution that linear layers begin with in torch, 1 / (3 inputs).
    """
    if name.endswith(".lora.b"):
        return 0.0
    return 1 / math.sqrt(3 * inputs) if name.endswith(".lora.a") else None


def attach_adapters(model: nn.Module, lora: LoraConfig) -> None:
    """Freeze the model and put adapters beside the linear layers that `lora` names."""
    model.requires_grad_(False)
    for name, layer in linear_layers(model):
        if name in lora.targets and (lora.experts or not layer.is_expert):
            layer.attach(lora)
    embedding = getattr(model, "embedding", None)
    if isinstance(embedding, nn.Module):
        # recomputed layers have gradients only if their input asks for one, which a frozen embedding's output does not
        embedding.register_forward_hook(ask_for_gradient)


@contextlib.contextmanager
def without_adapters(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it the models compute as if their adapters were not there."""
    adapters = [module for chunk in chunks for module in chunk.modules() if isinstance(module, Adapter)]
    scales = [adapter.scale for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.scale = 0.0
        yield
    finally:
        for adapter, scale in zip(adapters, scales, strict=True):
            adapter.scale = scale


def linear_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Each linear layer of attention and MLP, experts' too, with the last part of its name."""
    layers = [(name.rpartition(".")[2], layer) for name, layer in model.named_modules()]
    return [(name, layer) for name, layer in layers if name in ALL_TARGETS]


def ask_for_gradient(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A forward hook: let what comes out ask for a gradient even where nothing that made it does."""
    return output.requires_grad_() if torch.is_grad_enabled() and output.is_leaf else output


def is_adapter(name: str) -> bool:
    """Whether a parameter's name, or a stored tensor's, is that of an adapter."""
    return ".lora." in name
