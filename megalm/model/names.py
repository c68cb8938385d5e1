"""Refuses names in the section `model` that no code in this package goes by."""

from collections.abc import Iterable

from megalm.config.model import ModelConfig
from megalm.config.suggest import nearest
from megalm.errors import UserError
from megalm.model.activation import ACTIVATION_KERNELS, ACTIVATIONS
from megalm.model.attention_kernels import ATTENTIONS
from megalm.model.norm import NORMS
from megalm.model.positions import POSITIONS, ROPES


def check_names(model: ModelConfig) -> None:
    """Raise UserError for an unknown activation, position embedding or kernel; needs no process group."""
    known: dict[str, Iterable[str]] = {
        "activation": ACTIVATIONS,
        "position_embedding": POSITIONS,
        "attention": ATTENTIONS,
        "norm": NORMS,
        "activation_kernel": ACTIVATION_KERNELS,
        "rope_kernel": ROPES,
    }
    for field, names in known.items():
        value = getattr(model, field)
        if value not in names:
            raise UserError(
                f"model.{field} {value!r} is unknown{nearest(value, names)} (known: {', '.join(names)})"
            )
