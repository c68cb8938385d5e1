"""Megatron-Core's parallel linear layers, less their overhead where there is nothing to share."""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from megalm.config.lora import LoraConfig
from megalm.model.lora import ColumnAdapter, RowAdapter
from megalm.model.quantized import PARTS, QuantizedWeight, WeightForm


def _alone(layer: "ColumnLinear | RowLinear") -> bool:
    """Whether this rank holds the whole weight for good.

    ZeRO-3 takes weights away between their uses. Megatron-Core's function then saves the weight itself for the backward
    pass; a plain linear would save a view, which keeps what was to be taken away.
    """
    return layer.tp_group.size() == 1 and not hasattr(layer.weight, "ds_id")


def _sharded(
    layer: "ColumnLinear | RowLinear",
    axes: dict[str, int],
    prefix: str,
    offsets: Any,
    metadata: dict[str, Any] | None,
) -> dict[str, Any]:
    """Each parameter's part of the full tensor: `axes` are those along which it is cut."""
    assert metadata is not None
    state = layer.state_dict(prefix="", keep_vars=True)
    if layer.quantized is not None and layer.quantized.form.stored:
        del state["weight"]  # its codes stand for it
        by_rows = axes["weight"] == 1 and layer.quantized.form.group_size is None
        axes = axes | {
            f"quantized.{part}": axes["weight"] for part in PARTS if part == "codes" or not by_rows
        }
    return make_sharded_tensors_for_checkpoint(
        state,
        prefix,
        axes,
        offsets,
        tp_group=layer.tp_group,
        dp_cp_group=metadata["dp_cp_group"],
    )


def _give_up_weight(layer: "ColumnLinear | RowLinear") -> None:
    """Where weights will be quantised, leave no memory to this one at once, so that there is one at a time."""
    weight = layer.weight
    if layer.config.weight_form is None:
        return
    layer.full_shape = tuple(weight.shape)
    layer.weight = nn.Parameter(weight.new_empty(0), requires_grad=False)
    layer.weight.allreduce = weight.allreduce


def _quantize(layer: "ColumnLinear | RowLinear", form: WeightForm, inputs_shared_by: Any = None) -> None:
    """Make room for the quantised weight; a parameter without memory holds its place, where checkpoints find it."""
    outputs, inputs = layer.full_shape
    layer.quantized = QuantizedWeight(outputs, inputs, form, layer.weight.device, inputs_shared_by)
    nothing = torch.empty((), dtype=layer.weight.dtype, device="meta").expand(layer.full_shape)
    layer.weight = nn.Parameter(nothing, requires_grad=False)
    layer.weight.quantized = layer.quantized


def _multiply(layer: "ColumnLinear | RowLinear", input_: Tensor, bias: Tensor | None = None) -> Tensor:
    if layer.quantized is None:
        return F.linear(input_, layer.weight, bias)
    output = layer.quantized(input_)
    return output if bias is None else output + bias


class ColumnLinear(ColumnParallelLinear):
    """x W' + b with the output cut over the tensor-parallel ranks; on one rank a single kernel adds the bias too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lora: ColumnAdapter | None = None
        self.quantized: QuantizedWeight | None = None
        _give_up_weight(self)

    def attach(self, lora: LoraConfig) -> None:
        """Put an adapter beside the weight."""
        self.lora = ColumnAdapter(self, lora, self.input_size, self.output_size_per_partition)

    def quantize(self, form: WeightForm) -> None:
        """Hold the weight in few bits from now on."""
        _quantize(self, form)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The library's, with the adapter's cut factor."""
        state = _sharded(self, {"weight": 0, "bias": 0, "lora.b": 0}, prefix, sharded_offsets, metadata)
        if prefix.endswith("linear_fc1.") and self.config.gated_linear_unit:
            # the halves of a gated layer's output are cut each by itself, as the library does it for the weight
            for key in (f"{prefix}lora.b", *(f"{prefix}quantized.{part}" for part in PARTS)):
                if key in state:
                    state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (output, bias still to be added or None)."""
        output, bias = self._base(input_, weight, runtime_gather_output)
        return (output if self.lora is None else output + self.lora(input_)), bias

    def _base(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if self.quantized is not None:
            return self._traceable(input_)
        if not _alone(self):
            if torch.compiler.is_compiling() and weight is None and not runtime_gather_output:
                return self._traceable(input_)
            if self.bias is not None and self.bias.requires_grad and not self.weight.requires_grad:
                return self._traceable(input_)  # the library gives the bias of a frozen weight no gradient
            return super().forward(input_, weight, runtime_gather_output)
        return F.linear(input_, self.weight if weight is None else weight, self.bias), None

    def _traceable(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same with collectives that torch.compile can follow; the library's asynchronous ones break its graph."""
        if self.explicit_expert_comm:
            pass  # the dispatcher has brought the tokens here
        elif self.sequence_parallel:
            input_ = gather_from_sequence_parallel_region(input_, group=self.tp_group)
        else:
            input_ = copy_to_tensor_model_parallel_region(input_, group=self.tp_group)
        return _multiply(self, input_, self.bias), None


class RowLinear(RowParallelLinear):
    """x W' + b with the input cut over the tensor-parallel ranks; on one rank a single kernel adds the bias too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lora: RowAdapter | None = None
        self.quantized: QuantizedWeight | None = None
        _give_up_weight(self)

    def attach(self, lora: LoraConfig) -> None:
        """Put an adapter beside the weight."""
        self.lora = RowAdapter(self, lora, self.input_size_per_partition, self.output_size)

    def quantize(self, form: WeightForm) -> None:
        """Hold the weight in few bits from now on."""
        _quantize(self, form, self.tp_group)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The library's, with the adapter's cut factor."""
        return _sharded(self, {"weight": 1, "lora.a": 1}, prefix, sharded_offsets, metadata)

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (output, bias still to be added or None)."""
        output, bias = self._base(input_)
        return (output if self.lora is None else output + self.lora(input_)), bias

    def _base(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.quantized is None and _alone(self):
            return F.linear(input_, self.weight, self.bias), None
        own = self.quantized is not None or torch.compiler.is_compiling()
        compute = self._traceable if own else super().forward
        output, bias = compute(input_)
        if bias is not None and not torch.is_grad_enabled():
            # recompute of the MLP returns it from an autograd function, which would make it that function's own result:
            # no parameter any more, and a backward pass that runs into itself
            bias = bias.clone()
        return output, bias

    def _traceable(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same without the library's warning about a missing group, which breaks torch.compile's graph."""
        partial = _multiply(self, input_)
        if self.explicit_expert_comm:
            return partial, self.bias
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(partial, group=self.tp_group), self.bias
        return reduce_from_tensor_model_parallel_region(partial, group=self.tp_group), self.bias
