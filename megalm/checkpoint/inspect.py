"""Lists what a checkpoint holds without loading it."""

import math
from pathlib import Path
from typing import Any

from megalm.checkpoint.directory import find_checkpoint, read_config, read_state
from megalm.checkpoint.metadata import read_tensors


def inspect_checkpoint(path: str | Path, step: int | None = None) -> dict[str, Any]:
    """Step, configuration's model section, and every tensor's name, shape, format, bytes and shards."""
    found = find_checkpoint(path, step)
    tensors: dict[str, dict[str, Any]] = {
        name: {
            "shape": list(info.shape),
            "dtype": str(info.dtype).removeprefix("torch."),
            "bytes": math.prod(info.shape) * info.dtype.itemsize,
            "shards": [{"offset": list(o), "shape": list(s), "file": f} for o, s, f in info.shards],
        }
        for name, info in read_tensors(found).items()
    }
    model = read_config(found).model
    weights = sum(math.prod(t["shape"]) for name, t in tensors.items() if not name.startswith("optimizer."))
    return {
        "checkpoint": str(found),
        "step": read_state(found)["step"],
        "model": model.model_dump(exclude_none=True),
        "weights": weights,
        "bytes": sum(t["bytes"] for t in tensors.values()),
        "tensors": tensors,
    }
