"""How far a student's hidden states are from its teacher's."""

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from torch import Tensor

from megalm.model.gpt import GPT


def hidden_distance(
    student_SBH: Tensor, teacher_SBH: Tensor, mask_BS: Tensor, kind: str, model: GPT
) -> Tensor:
    """Sum over tokens of mask x distance, fp32 (fp64 for fp64): `mse` mean squared difference, `cosine` 1 - cosine.

    (TinyBERT, arXiv:1909.10351, equation 8; DistilBERT, arXiv:1910.01108, section 3.) Both are of one width; under sequence
    parallelism they are this rank's part, and the sum is over all ranks' parts. mask_BS: of whole sequences.
    """
    wide = torch.promote_types(student_SBH.dtype, torch.float32)
    student, teacher = student_SBH.to(wide), teacher_SBH.detach().to(wide)
    if kind == "mse":
        distance_SB = (student - teacher).square().mean(-1)
    else:
        distance_SB = 1 - F.cosine_similarity(student, teacher, dim=-1)
    group, mask_SB = model.pg_collection.tp, mask_BS.T
    if not model.config.sequence_parallel:
        return (distance_SB * mask_SB).sum()
    part = (distance_SB * mask_SB.chunk(group.size())[group.rank()]).sum()
    return reduce_from_tensor_model_parallel_region(part, group=group)
