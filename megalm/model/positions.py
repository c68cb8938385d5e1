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

    def tables(self, state: ForwardState, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, shape (S, B or 1, 1, head width), computed once a forward pass."""
        if "rotary" not in state.memo:
            device = like.device
            if state.positions_BS is None:
                positions_SB = torch.arange(length, device=device)[:, None]
            else:
                positions_SB = state.positions_BS.T
            angles = positions_SB[..., None].double() * self.frequencies.to(device)
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


def alibi_slopes(heads: int) -> Tensor:
    """Slope of each head, shape (N), float64 (ALiBi, arXiv:2108.12409, section 3)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float64)


def alibi_bias(slopes_N: Tensor, state: ForwardState, queries: int, keys: int) -> Tensor:
    """Bias on attention scores, shape (B or 1, N, S, K): slope x (key position - query position).

    Without a cache the queries are the last tokens of the keys.
    """
    device = slopes_N.device
    key_positions = torch.arange(keys, device=device)
    if state.cache is not None:
        assert state.positions_BS is not None
        query_positions_BS = state.positions_BS
    else:
        # inside one document distances do not depend on where positions restart
        query_positions_BS = key_positions[None, keys - queries :]
    distance_BSK = key_positions[None, None, :] - query_positions_BS[:, :, None]
    return slopes_N[None, :, None, None] * distance_BSK[:, None].to(slopes_N.dtype)


def sinusoidal_table(length: int, width: int) -> Tensor:
    """Fixed positions of "Attention is all you need" (arXiv:1706.03762, section 3.5), shape (length, width)."""
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    angles = positions * 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
