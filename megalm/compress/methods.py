"""The ways to compress, as they are written on the command line: `int8`, `int4:64`, `wanda:2:4`, `drop:2`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from megalm.compress.drop import MEASURES, drop_layers
from megalm.compress.masks import Sparsity
from megalm.compress.prune import PRUNINGS, prune_checkpoint
from megalm.compress.quantize import QUANTIZATIONS, check_quantization_method, quantize_checkpoint
from megalm.compress.text import Text
from megalm.config.suggest import nearest
from megalm.errors import UserError

OpenText = Callable[..., Text] | None
"""Opens the calibration text given (configuration, tokenizer)."""
DROP = "drop"


class Method(Protocol):
    """One way to compress."""

    @property
    def name(self) -> str:
        """How it is written."""

    @property
    def dtype(self) -> str | None:
        """The format that the result is meant to be computed in, None where any will do."""

    @property
    def reads_text(self) -> bool:
        """Whether it cannot do without calibration text."""

    def apply(self, source: Path, target: Path, open_text: OpenText, dtype: str) -> dict[str, Any]:
        """Write the compressed model of the checkpoint `source` at `target`; returns what was made."""


@dataclass(frozen=True)
class Quantize:
    """See `quantize_checkpoint`."""

    method: str
    group_size: int | None = None
    reads_text: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_quantization_method(self.method, self.group_size)

    @property
    def name(self) -> str:
        """See Method."""
        return self.method if self.group_size is None else f"{self.method}:{self.group_size}"

    @property
    def dtype(self) -> str | None:
        """See Method."""
        return "bf16" if self.method in ("bf16", "fp8") else None

    def apply(self, source: Path, target: Path, open_text: OpenText, dtype: str) -> dict[str, Any]:
        """See Method."""
        return quantize_checkpoint(source, target, self.method, self.group_size)


@dataclass(frozen=True)
class Prune:
    """See `prune_checkpoint`."""

    method: str
    sparsity: Sparsity
    dtype: None = None

    @property
    def name(self) -> str:
        """See Method."""
        return f"{self.method}:{self.sparsity}"

    @property
    def reads_text(self) -> bool:
        """See Method."""
        return self.method == "wanda"

    def apply(self, source: Path, target: Path, open_text: OpenText, dtype: str) -> dict[str, Any]:
        """See Method."""
        return prune_checkpoint(source, target, self.method, self.sparsity, open_text, dtype=dtype)


@dataclass(frozen=True)
class Drop:
    """See `drop_layers`."""

    layers: Sequence[int] | None = None
    count: int | None = None
    by: str = MEASURES[0]
    dtype: None = None

    @property
    def name(self) -> str:
        """See Method."""
        if self.layers is not None:
            return "drop layers " + ",".join(map(str, self.layers))
        return f"{DROP}:{self.count}" if self.by == MEASURES[0] else f"{DROP}:{self.count}:{self.by}"

    @property
    def reads_text(self) -> bool:
        """See Method."""
        return self.layers is None

    def apply(self, source: Path, target: Path, open_text: OpenText, dtype: str) -> dict[str, Any]:
        """See Method."""
        return drop_layers(source, target, self.layers, self.count, self.by, open_text, dtype=dtype)


def parse_method(text: str) -> Method:
    """The method that `text` writes; UserError for what is none."""
    kind, colon, rest = text.partition(":")
    if kind in QUANTIZATIONS:
        return Quantize(kind, _number(text, rest) if colon else None)
    if kind in PRUNINGS:
        return Prune(kind, Sparsity.parse(rest or "0.5"))
    if kind == DROP:
        count, _, by = rest.partition(":")
        if by and by not in MEASURES:
            raise UserError(f"method {text!r}: known measures are {', '.join(MEASURES)}")
        return Drop(count=_number(text, count), by=by or MEASURES[0])
    known = (*QUANTIZATIONS, *PRUNINGS, DROP)
    raise UserError(f"method {text!r} is unknown{nearest(kind, known)} (known: {', '.join(known)})")


def _number(text: str, part: str) -> int:
    if not part.isdigit() or int(part) < 1:
        raise UserError(f"method {text!r}: {part!r} is no whole number above 0; write e.g. int4:64 or drop:2")
    return int(part)
