"""Converts what lies in one directory into another form, telling by itself what it is."""

from pathlib import Path
from typing import Any

from megalm.config.suggest import nearest
from megalm.convert.hugging_face import from_hugging_face, to_hugging_face
from megalm.errors import UserError

FORMS = ("hf", "megalm")
DTYPES = ("fp32", "bf16", "fp16")


def convert(
    source: str | Path,
    target: str | Path,
    to: str | None = None,
    *,
    family: str | None = None,
    like: str | Path | None = None,
    dtype: str | None = None,
    step: int | None = None,
    compare: bool = True,
) -> dict[str, Any]:
    """Write the model at `source` to `target` in the form `to`: `hf` or `megalm`, by default what the source is not.

    The other arguments are those of `to_hugging_face`; only `compare` is for both ways. Returns what was converted and
    how far the logits are apart. Raises UserError for what cannot be converted; then nothing is left at `target`.
    """
    source = Path(source)
    found = form_of(source)
    to = to or next(form for form in FORMS if form != found)
    if to not in FORMS:
        raise UserError(f"--to {to!r} is unknown{nearest(to, FORMS)} (known: {', '.join(FORMS)})")
    if to == found:
        raise UserError(f"{source} is in the form {to} already; give another --to")
    if to == "megalm":
        given = {"--family": family, "--like": like, "--dtype": dtype, "--step": step}
        if named := [name for name, value in given.items() if value is not None]:
            raise UserError(f"{named[0]} is for conversion to hf; leave it out")
        return from_hugging_face(source, target, compare)
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown{nearest(dtype, DTYPES)} (known: {', '.join(DTYPES)})")
    return to_hugging_face(source, target, family, like, dtype, compare, step)


def form_of(source: Path) -> str:
    """`megalm` for a run or a checkpoint, else `hf`; UserError where there is nothing to convert."""
    if not source.is_dir():
        raise UserError(f"{source}: no such directory")
    if (source / "manifest.json").is_file() or (source / "checkpoints").is_dir():
        return "megalm"
    return "hf"
