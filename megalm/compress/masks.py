"""Which weights of a matrix go: by their size, or by Wanda's score (arXiv:2306.11695)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megalm.errors import UserError


@dataclass(frozen=True)
class Sparsity:
    """share: of all weights that become zero; or pattern (n, m): of m neighbours along the inputs n at most are not zero."""

    share: float | None = None
    pattern: tuple[int, int] | None = None

    @classmethod
    def parse(cls, text: str) -> "Sparsity":
        """`0.5`, or a pattern such as `2:4`; UserError for anything else."""
        kept, colon, size = text.partition(":")
        try:
            if colon:
                n, m = int(kept), int(size)
                if 0 < n < m:
                    return cls(pattern=(n, m))
            elif 0 < float(text) < 1:
                return cls(share=float(text))
        except ValueError:
            pass
        raise UserError(
            f"sparsity {text!r} is neither a share between 0 and 1, e.g. 0.5, nor a pattern, e.g. 2:4"
        )

    def __str__(self) -> str:
        return f"{self.share:g}" if self.pattern is None else "{}:{}".format(*self.pattern)

    def check_inputs(self, name: str, inputs: int) -> None:
        """Raise UserError where the inputs of the matrix `name` are no whole number of a pattern's neighbours."""
        if self.pattern is not None and inputs % self.pattern[1]:
            raise UserError(
                f"pattern {self}: {name} has {inputs} inputs, which is no multiple of {self.pattern[1]}; give a share, e.g. 0.5"
            )


def magnitude_mask(weight: Tensor, sparsity: Sparsity) -> Tensor:
    """True where a weight (outputs, inputs) stays: the largest of the matrix, or of each m neighbours."""
    scores = weight.abs()
    if sparsity.pattern is not None:
        return _of_neighbours(scores, *sparsity.pattern)
    assert sparsity.share is not None
    return _largest(scores.flatten()[None], sparsity.share).view_as(weight)


def wanda_scores(weight: Tensor, input_norm: Tensor) -> Tensor:
    """|W_ij| x |X_j|_2, of a weight (outputs, inputs) and the norms (inputs) of its inputs over all tokens."""
    return weight.abs() * input_norm


def wanda_mask(weight: Tensor, input_norm: Tensor, sparsity: Sparsity) -> Tensor:
    """True where a weight stays: the largest scores of each output, or of each m neighbours."""
    scores = wanda_scores(weight, input_norm)
    if sparsity.pattern is not None:
        return _of_neighbours(scores, *sparsity.pattern)
    assert sparsity.share is not None
    return _largest(scores, sparsity.share)


def _largest(scores: Tensor, share: float) -> Tensor:
    """True but for the share of each row that is smallest; of equal ones the first go."""
    gone = round(scores.shape[1] * share)
    mask = torch.ones_like(scores, dtype=torch.bool)
    order = scores.sort(dim=1, stable=True).indices[:, :gone]
    return mask.scatter_(1, order, False)


def _of_neighbours(scores: Tensor, kept: int, size: int) -> Tensor:
    groups = scores.unflatten(1, (-1, size))
    order = groups.sort(dim=-1, stable=True).indices[..., : size - kept]
    mask = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, order, False)
    return mask.flatten(1)
