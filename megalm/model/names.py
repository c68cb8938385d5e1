"""Refuses names in the section `model` that no code in this package goes by."""

from collections.abc import Iterable

from megalm.config.model import ModelConfig
from megalm.config.suggest import nearest
from megalm.errors import UserError
from megalm.kernels import FLASH_ATTN, detect
from megalm.model.attention_kernels import ATTENTIONS
from megalm.model.norm import NORMS
from megalm.model.positions import POSITIONS
from megalm.model.spec import ACTIVATIONS


def check_names(model: ModelConfig) -> None:
    """Raise UserError for an unknown activation, position embedding, attention or norm kernel; needs no process group."""
    known: dict[str, Iterable[str]] = {
        "activation": ACTIVATIONS,
        "position_embedding": POSITIONS,
        "attention": ATTENTIONS,
        "norm": NORMS,
    }
    for field, names in known.items():
        value = getattr(model, field)
        if value not in names:
            raise UserError(
                f"model.{field} {value!r} is unknown{nearest(value, names)} (known: {', '.join(names)})"
            )
    if model.attention == "flash" and not (flash := detect()[FLASH_ATTN.name]).usable:
        raise UserError(
            f"model.attention is `flash`, but flash_attn is not to be used here ({flash.problem}): take `torch`"
        )
