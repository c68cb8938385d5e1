"""Compresses one model in several ways and measures the results beside it."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megalm import atomic
from megalm.checkpoint.directory import find_checkpoint, read_config, refuse_among_checkpoints, tokenizer_of
from megalm.compress.measure import is_language_model, measure
from megalm.compress.methods import Method, OpenText
from megalm.compress.picture import draw
from megalm.compress.text import Text, open_samples
from megalm.config import Config
from megalm.errors import UserError
from megalm.generate.request import DTYPES
from megalm.tokenizer import load_tokenizer
from megalm.tokenizer.compare import check_plot_path


@dataclass(kw_only=True)
class CompressRequest:
    """Of which model, on which text, in which format; raises UserError where a value makes no sense.

    `calibration` and `held_out`: token files (prefixes) or text, of which so many samples of `length` tokens are taken
    (default: as the model was trained); without held-out text no perplexity is measured. `dtype`: the format that the model, and
    what of its children is not quantised, computes in. `plot`: picture to draw, .png or .svg.
    """

    source: str
    step: int | str | None = None
    calibration: Sequence[Path] = field(default_factory=list)
    calibration_samples: int = 128
    held_out: Sequence[Path] = field(default_factory=list)
    held_out_samples: int = 64
    length: int | None = None
    dtype: str = "fp32"
    plot: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("calibration_samples", 1), ("held_out_samples", 1), ("length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} is {value}: it must be at least {least}")
        if self.dtype not in DTYPES:
            raise UserError(f"--dtype is {self.dtype!r}: it must be one of {', '.join(DTYPES)}")
        if self.plot is not None:
            check_plot_path(self.plot)


def main(request: CompressRequest, methods: Sequence[tuple[Method, Path]]) -> dict[str, Any]:
    """Write a checkpoint for each method at its path; returns the source's figures and each one's in `rows`.

    A row has its name, checkpoint, number format, what the method tells, and `Measured`'s figures, with
    `perplexity_change`, the perplexity over the source's less one. Raises UserError as the methods do; then none of them is left.
    """
    source = find_checkpoint(request.source, request.step)
    config = read_config(source)
    for _, target in methods:
        refuse_among_checkpoints(target)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} exists; choose another path")
    open_text = _opener(request.calibration, request.calibration_samples, request.length)
    held_out = _held_out(request, source, config)
    blind = [method.name for method, _ in methods if method.reads_text]
    if blind and open_text is None:
        raise UserError(f"{', '.join(blind)} chooses by text: name text or token files with --calibration")
    rows: list[dict[str, Any]] = [_row("source", source, request.dtype, held_out, None)]
    made: list[Path] = []
    try:
        for method, target in methods:
            told = method.apply(source, target, open_text, request.dtype)
            made.append(target)
            told.pop("source")
            dtype = method.dtype or request.dtype
            rows.append(_row(method.name, target, dtype, held_out, rows[0]["perplexity"]) | {"made": told})
    except UserError:  # the mended command makes all of them anew
        for target in made:
            shutil.rmtree(target)
        raise
    if request.plot is not None:
        atomic.write_bytes(request.plot, draw(rows, request.plot.suffix[1:]))
    return {"source": str(source), "rows": rows}


def _row(
    name: str, checkpoint: Path, dtype: str, held_out: Text | None, reference: float | None
) -> dict[str, Any]:
    measured = measure(checkpoint, dtype, held_out)
    change = None
    if measured.perplexity is not None:
        change = 0.0 if reference is None else measured.perplexity / reference - 1
    return {
        "name": name,
        "checkpoint": str(checkpoint),
        "dtype": dtype,
        **asdict(measured),
        "perplexity_change": change,
    }


def _opener(sources: Sequence[Path], samples: int, length: int | None) -> OpenText:
    return partial(_open, sources, samples, length) if sources else None


def _open(sources: Sequence[Path], samples: int, length: int | None, config: Config, tokenizer: Any) -> Text:
    return open_samples(sources, config, tokenizer, samples, length)


def _held_out(request: CompressRequest, source: Path, config: Config) -> Text | None:
    if not request.held_out:
        return None
    if not is_language_model(config):
        raise UserError(f"{source} is no language model and has no perplexity: leave --held-out out")
    path = tokenizer_of(source, config)
    if path is None:
        raise UserError(
            f"{source}: no tokenizer in it or in its run, and text is to be read; copy the model's to it"
        )
    return open_samples(
        request.held_out, config, load_tokenizer(path), request.held_out_samples, request.length
    )
