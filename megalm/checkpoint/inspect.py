"""Lists what a checkpoint holds without loading it."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megalm.checkpoint.directory import find_checkpoint, read_config, read_state
from megalm.checkpoint.metadata import TensorInfo, read_tensors
from megalm.config import Config


def inspect_checkpoint(path: str | Path, step: int | str | None = None) -> dict[str, Any]:
    """Step, configuration's model section, and every tensor's name, shape, format, bytes and shards.

    path: a checkpoint, or a run directory of which `step` (default: the newest) is taken. `weights` counts the
    parameters with the padding of the vocabulary; `bytes` those of all tensors. Raises UserError for what is no checkpoint.
    """
    found = find_checkpoint(path, step)
    tensors = read_tensors(found)
    config = read_config(found)
    return {
        "checkpoint": str(found),
        "step": read_state(found)["step"],
        "model": config.model.model_dump(exclude_none=True),
        "weights": sum(_weights(name, tensor, config) for name, tensor in tensors.items()),
        "bytes": sum(_size(tensor) for tensor in tensors.values()),
        "tensors": {name: _describe(tensor) for name, tensor in tensors.items()},
    }


def print_table(report: dict[str, Any]) -> None:
    """Print what `inspect_checkpoint` returned as a table on standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    table = Table("tensor", title=f"{report['checkpoint']} (step {report['step']})", title_justify="left")
    for heading in ("shape", "dtype", "shards", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.columns[0].overflow = "fold"
    for name, tensor in report["tensors"].items():
        shape = " x ".join(map(str, tensor["shape"]))
        table.add_row(name, shape, tensor["dtype"], str(len(tensor["shards"])), f"{tensor['bytes']:,}")
    table.add_section()
    table.add_row(f"total ({report['weights']:,} weights)", "", "", "", f"{report['bytes']:,}")
    console.print(table)


def _weights(name: str, tensor: TensorInfo, config: Config) -> int:
    """How many parameters a tensor stands for; of quantised ones the codes do, of int4 two a byte."""
    _, quantized, part = name.rpartition(".quantized.")
    if name.startswith("optimizer.") or (quantized and part != "codes"):
        return 0
    return math.prod(tensor.shape) * (2 if quantized and config.quantization.method == "int4" else 1)


def _size(tensor: TensorInfo) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _describe(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "bytes": _size(tensor),
        "shards": [{"offset": list(s.offset), "shape": list(s.shape), "file": s.file} for s in tensor.shards],
    }
