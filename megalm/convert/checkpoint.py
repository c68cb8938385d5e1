"""Writes a checkpoint of ours without optimizer: what training and generation begin with."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from megalm import atomic
from megalm.checkpoint.directory import TENSORS
from megalm.config import Config, dump_config
from megalm.convert.source import Source
from megalm.convert.stored import Entry, place_of, write_stored

DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
"""Formats of weights as `precision.dtype` names them."""


def entry(source: Source, name: str, stored: str | None = None) -> Entry:
    """What writes the parameter `stored` of a source (by default the same) under `name`."""
    taken = stored or name
    outline = source.outline(taken)
    return Entry(name, tuple(outline.shape), outline.dtype, lambda: source.read(taken))


def write_checkpoint(folder: Path, config: Config, entries: Sequence[Entry]) -> None:
    """Write everything of a checkpoint of step 0 into `folder` but its manifest, which is to come last."""
    write_stored(folder / TENSORS, entries, partial(place_of, model=config.model))
    torch.save({}, folder / TENSORS / "common.pt")
    dump_config(config, folder / "config.yaml")
    state = {"step": 0, "counters": {"updates": 0, "steps_begun": 0}}
    atomic.write_text(folder / "state.json", json.dumps(state, indent=1))
