"""What tensors without memory hold where the code asks: zeros, and where shapes depend on values, an even spread."""

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megalm.config.schema import Config
from megalm.plan.device import META

aten = torch.ops.aten
_SUMS = {aten.sum.default, aten.sum.dim_IntList}
_COPIES = {aten.clone.default, aten._to_copy.default}
_DEPENDENT = {
    aten._local_scalar_dense.default,
    aten.lift_fresh.default,
    aten.nonzero.default,
    aten.masked_select.default,
}


class Values:
    """Answers for values. `share`: how much of a mask is true, as far as shapes depend on it.

    A router's mask sends each token to its `router_top_k` of the experts, evenly; a masked language model's marks
    `mlm.mask_probability` of the tokens.
    """

    def __init__(self, config: Config) -> None:
        moe = config.model.moe
        self.share = 1.0
        if moe.num_experts:
            self.share = moe.router_top_k / moe.num_experts
        elif config.model.architecture == "bert":
            self.share = config.mlm.mask_probability
        self._each: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()
        """By storage: what each element of a tensor of token counts is."""

    def knows(self, function: Any) -> bool:
        """Whether this operator's result depends on values."""
        return function in _DEPENDENT

    def run(self, function: Any, args: Sequence[Any]) -> Any:
        """The result of such an operator."""
        if function is aten._local_scalar_dense.default:
            return self.to_numpy(args[0]).item()
        if function is aten.lift_fresh.default:  # the end of torch.tensor(...), which holds real numbers
            return torch.empty_like(args[0], device=META)
        if function is aten.nonzero.default:
            return args[0].new_empty((self._count(args[0]), args[0].dim()), dtype=torch.int64)
        mask = torch.broadcast_to(args[1], torch.broadcast_shapes(args[0].shape, args[1].shape))
        return args[0].new_empty(self._count(mask))

    def watch(self, function: Any, args: Sequence[Any], output: Any) -> None:
        """Follow counts of tokens from the masks that they are summed over to where they become sizes."""
        if function in _SUMS:
            each = self.share if args[0].dtype == torch.bool else self._of(args[0])
            self._set(output, each * args[0].numel() / max(1, output.numel()))
        elif function in _COPIES:
            self._set(output, self._of(args[0]))

    def gathered(self, outputs: Sequence[Tensor], mine: Any) -> None:
        """The other ranks count as many."""
        if isinstance(mine, Tensor):
            for output in outputs:
                self._set(output, self._of(mine))

    def to_numpy(self, tensor: Tensor) -> NDArray[Any]:
        """Counts of tokens, evenly spread; zeros where nothing else is known."""
        kind = str(tensor.dtype).removeprefix("torch.")
        kind = "float32" if kind == "bfloat16" else kind
        each = self._of(tensor)
        size, rest = divmod(round(each * tensor.numel()), max(1, tensor.numel()))
        return (size + (np.arange(tensor.numel()) < rest)).astype(kind).reshape(tensor.shape)

    def _of(self, tensor: Tensor) -> float:
        return self._each.get(tensor.untyped_storage(), 0.0)

    def _set(self, tensor: Tensor, each: float) -> None:
        if each and tensor.dtype == torch.int64:
            self._each[tensor.untyped_storage()] = each

    def _count(self, mask: Tensor) -> int:
        return round(self.share * mask.numel())
