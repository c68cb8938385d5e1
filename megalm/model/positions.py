"""Positions: rotary angles, ALiBi slopes and the sinusoidal table."""

import math

import torch
from torch import Tensor

from megalm.config.model import ModelConfig
from megalm.model.state import ForwardState

POSITIONS = ("learned", "rope", "sinusoidal", "alibi", "none")


def rotary_frequencies(model: ModelConfig) -> Tensor:
    """Angular frequency of each pair of a head's components, shape (head width / 2), float64.

    RoFormer, arXiv:2104.09864, eq. 15; with `rope_scaling_factor` > 1 the long wavelengths are stretched as in
    LLaMA 3.1 (arXiv:2407.21783; low and high frequency factors 1 and 4).
    """
    width = model.head_dim
    frequencies = model.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if model.rope_scaling_factor == 1.0:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low, high = 1.0, 4.0
    turns = model.rope_original_max_sequence_length / wavelengths
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (smooth + (1 - smooth) / model.rope_scaling_factor)


class Rotary:
    """Turns pairs (i, i + width / 2) of queries and keys by position x frequency."""

    def __init__(self, model: ModelConfig) -> None:
        self.frequencies = rotary_frequencies(model)
        self.kernel = ROPES[model.rope_kernel]

    def turn(self, query_SBND: Tensor, key_SBGD: Tensor, state: ForwardState) -> tuple[Tensor, Tensor]:
        """Return the turned queries and keys by the kernel that `model.rope_kernel` names."""
        return self.kernel(self, query_SBND, key_SBGD, state)

    def angles(self, state: ForwardState, length: int, device: torch.device) -> Tensor:
        """Angle of each pair, shape (S, B or 1, head width / 2), float64."""
        if state.positions_BS is None:
            positions_SB = torch.arange(length, device=device)[:, None]
        else:
            positions_SB = state.positions_BS.T
        return positions_SB[..., None].double() * self.frequencies.to(device)

    def tables(self, state: ForwardState, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, shape (S, B or 1, 1, head width), computed once a forward pass."""
        if "rotary" not in state.memo:
            angles = self.angles(state, length, like.device)
            cosine, sine = angles.cos(), angles.sin()
            state.memo["rotary"] = (
                torch.cat([cosine, cosine], -1).to(like.dtype)[:, :, None],
                torch.cat([-sine, sine], -1).to(like.dtype)[:, :, None],
            )
        return state.memo["rotary"]

    def __call__(self, x_SBND: Tensor, state: ForwardState) -> Tensor:
        """Return the turned tensor, same shape and dtype."""
        cosine, sine = self.tables(state, x_SBND.shape[0], x_SBND)
        half = x_SBND.shape[-1] // 2
        return torch.addcmul(x_SBND * cosine, x_SBND.roll(half, -1), sine)


def plain_rope(
    rotary: Rotary, query_SBND: Tensor, key_SBGD: Tensor, state: ForwardState
) -> tuple[Tensor, Tensor]:
    """By torch's functions one after another."""
    return rotary(query_SBND, state), rotary(key_SBGD, state)


def liger_rope(
    rotary: Rotary, query_SBND: Tensor, key_SBGD: Tensor, state: ForwardState
) -> tuple[Tensor, Tensor]:
    """Liger's Triton kernel on CUDA: queries and keys at once, in place where they lie row by row."""
    from liger_kernel.ops.rope import LigerRopeFunction

    cosine, signed_sine = rotary.tables(state, len(query_SBND), query_SBND)
    sine = signed_sine.chunk(2, -1)[1].repeat(1, 1, 1, 2)
    tables_BSD = (x[:, :, 0].transpose(0, 1) for x in (cosine, sine))
    parts_BNSD = (x.permute(1, 2, 0, 3) for x in (query_SBND, key_SBGD))
    turned = LigerRopeFunction.apply(*parts_BNSD, *tables_BSD)
    query, key = (x.permute(2, 0, 1, 3) for x in turned)
    return query, key


def te_rope(
    rotary: Rotary, query_SBND: Tensor, key_SBGD: Tensor, state: ForwardState
) -> tuple[Tensor, Tensor]:
    """Transformer Engine's kernel on CUDA; where positions differ from row to row, torch's functions."""
    if state.positions_BS is not None and len(state.positions_BS) > 1:
        return plain_rope(rotary, query_SBND, key_SBGD, state)
    from transformer_engine.pytorch.attention.rope import apply_rotary_pos_emb

    if "angles" not in state.memo:
        angles = rotary.angles(state, len(query_SBND), query_SBND.device).float()
        state.memo["angles"] = torch.cat([angles, angles], -1)[:, :, None]
    query, key = (
        apply_rotary_pos_emb(x, state.memo["angles"], tensor_format="sbhd", fused=True)
        for x in (query_SBND, key_SBGD)
    )
    return query, key


ROPES = {"auto": plain_rope, "plain": plain_rope, "liger": liger_rope, "te": te_rope}


def alibi_slopes(heads: int) -> Tensor:
    """Slope of each head, shape (N), float64 (ALiBi, arXiv:2108.12409, section 3)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float64)


def alibi_bias(slopes_N: Tensor, queries: int, keys: int) -> Tensor:
    """Bias on attention scores, shape (1, N, S, K): slope x (key position - query position).

    The queries are the last tokens of the keys.
    """
    order = torch.arange(keys, device=slopes_N.device)
    # inside one document distances do not depend on where positions restart
    distance_SK = order[None, :] - order[keys - queries :, None]
    return slopes_N[None, :, None, None] * distance_SK.to(slopes_N.dtype)


def sinusoidal_table(length: int, width: int) -> Tensor:
    """Fixed positions of "Attention is all you need" (arXiv:1706.03762, section 3.5), shape (length, width)."""
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    angles = positions * 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
