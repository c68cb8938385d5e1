"""What the user asks of `megalm inspect` about a model's inside, checked before anything is loaded; imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from megalm.errors import UserError
from megalm.generate.request import ModelRequest, require


@dataclass(kw_only=True)
class InspectRequest(ModelRequest):
    """A checkpoint, and the texts and tokens that it is looked into with.

    `tokens`: spellings whose neighbours are wanted, besides those of the texts. `begin_token`: what a decoder's texts begin with. `position`:
    place of the prediction that is explained (from 0; negative from the end), `target`: the token or label that it is explained for, `baseline`: the
    token that stands for no information; None: see `attribution.explain`. `neighbours`, `top`: how many tokens of each list.
    """

    texts: Sequence[str] = ()
    tokens: Sequence[str] = ()
    begin_token: str | None = None
    position: int | None = None
    target: str | None = None
    baseline: str | None = None
    neighbours: int = 10
    top: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.texts and not self.tokens:
            raise UserError("nothing to look into the model with; give --text TEXT or --token TOKEN")
        for name in ("neighbours", "top"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("position", "target", "baseline"):
            require(self, name, getattr(self, name) is None or bool(self.texts), "left out without --text")

    def check_world_size(self, world_size: int) -> None:
        """Refuse more than one process."""
        if world_size > 1:
            raise UserError(f"megalm inspect takes one process, and there are {world_size}: start it alone")
