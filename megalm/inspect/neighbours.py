"""Which tokens' embeddings point the same way."""

import torch
from torch import Tensor


@torch.no_grad()
def nearest(matrix_VH: Tensor, tokens: list[int], count: int) -> list[list[tuple[int, float]]]:
    """For each of `tokens` the rows of the matrix with the largest cosine to its row, itself left out: (row, cosine), largest first.

    A row of zeros has cosine 0 to all.
    """
    wide_VH = matrix_VH.to(torch.promote_types(matrix_VH.dtype, torch.float32))
    unit_VH = wide_VH / wide_VH.norm(dim=1, keepdim=True).clamp_min(torch.finfo(wide_VH.dtype).tiny)
    found = []
    for token in tokens:  # one at a time: vocabularies are large
        cosine_V = unit_VH @ unit_VH[token]
        cosine_V[token] = -torch.inf
        best = cosine_V.topk(min(count, len(cosine_V) - 1))
        found.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
    return found
