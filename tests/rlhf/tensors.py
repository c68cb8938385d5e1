"""Random tensors of any shape and mask, with garbage where the mask is 0."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

MASKS = ("random", "responses", "holes", "single tokens", "first row empty", "all")


@dataclass(frozen=True)
class Shape:
    """What the tensors of an example are drawn from."""

    rows: int
    length: int
    mask: str
    seed: int


shapes = st.builds(
    Shape, st.integers(1, 5), st.integers(1, 9), st.sampled_from(MASKS), st.integers(0, 2**32 - 1)
)


class Draw:
    """Tensors of a shape, float64."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.random = np.random.default_rng(shape.seed)
        self.mask_BS = torch.from_numpy(self._mask())

    def _mask(self) -> np.ndarray:
        rows, length = self.shape.rows, self.shape.length
        order_1S = np.arange(length)[None]
        ends_B1 = self.random.integers(1, length + 1, (rows, 1))
        starts_B1 = self.random.integers(0, ends_B1)
        mask_BS = (order_1S >= starts_B1) & (order_1S < ends_B1)
        if self.shape.mask == "random":
            return self.random.random((rows, length)) < 0.5
        if self.shape.mask == "holes":
            return mask_BS & (self.random.random((rows, length)) < 0.7)
        if self.shape.mask == "single tokens":
            return order_1S == starts_B1
        if self.shape.mask == "first row empty":
            mask_BS[0] = False
        return np.ones_like(mask_BS) if self.shape.mask == "all" else mask_BS

    def normal(self, scale: float = 1.0, garbage: float = np.nan) -> Tensor:
        """Normal numbers at the tokens of the mask, `garbage` elsewhere."""
        drawn_BS = torch.from_numpy(self.random.normal(0, scale, (self.shape.rows, self.shape.length)))
        return drawn_BS.where(self.mask_BS, garbage)

    def logprobs(self, near_BS: Tensor | None = None) -> Tensor:
        """Log-probabilities, some of them far from those of `near_BS`; -inf outside of the mask."""
        if near_BS is None:
            return -self.normal().abs().where(self.mask_BS, torch.inf)
        return (near_BS + self.normal(0.5, 0.0)).where(self.mask_BS, -torch.inf)

    def rows(self) -> Tensor:
        """A normal number a row, (B)."""
        return torch.from_numpy(self.random.normal(size=self.shape.rows))
