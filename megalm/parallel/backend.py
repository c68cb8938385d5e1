"""Which library moves tensors between processes."""

import torch

from megalm.errors import UserError


def backend_for(requested: str) -> str:
    """`gloo` or `nccl` for `parallel.backend`: `auto` is nccl where CUDA is present. UserError for nccl without it."""
    cuda = torch.cuda.is_available()
    if requested == "nccl" and not cuda:
        raise UserError("parallel.backend nccl needs a GPU and torch finds none: take auto or gloo")
    if requested == "auto":
        return "nccl" if cuda else "gloo"
    return requested
