"""Products of few rows with a matrix, by what is fastest where they are computed."""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 128
"""Rows up to which oneDNN was the faster one."""


def product(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W' + b, (T, O), without gradient.

    Few rows on a CPU in fp32 by oneDNN: torch's own call goes to MKL, which on processors of other makers takes up to twice the time
    for a row and thrice for some (`benchmarks/generate.py`).
    """
    is_few = len(x_TI) <= FEW and x_TI.dtype == torch.float32 and x_TI.device.type == "cpu"
    if is_few and _HAS_ONEDNN:
        return torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_TI, weight_OI, bias_O)


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
