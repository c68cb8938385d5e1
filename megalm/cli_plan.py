"""The command `megalm plan`."""

import json
import re
from typing import Annotated

import typer

from megalm.cli_options import AsJson
from megalm.errors import UserError

_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def plan(
    config: Annotated[str, typer.Argument(help="YAML file of the run.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Values to change, e.g. parallel.tensor_model_parallel_size=8", metavar="KEY=VALUE"
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Processes on each, one a GPU.")] = 8,
    device: Annotated[
        str, typer.Option(help="What they run on: a GPU's name such as H100 or A100, or cpu.")
    ] = "H100",
    device_memory: Annotated[
        str | None, typer.Option(help="Memory of one device, e.g. 80GiB; default: its data sheet's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what a layout needs before it runs: memory of a rank by part, bytes sent, FLOPs.

    Really builds one rank of each kind of pipeline stage and takes it through a step, in a world of that size, all
    without memory: any model can be planned on a laptop.
    """
    from megalm.config import data_parallel_size, load_config

    resolved = load_config(config, overrides or [])
    data_parallel_size(resolved, nodes * gpus_per_node)
    size = memory_of(device, device_memory)
    from megalm.plan.report import render
    from megalm.plan.run import plan as make_plan
    from megalm.train.run import resolve_vocabulary

    resolved, _ = resolve_vocabulary(resolved)
    result = make_plan(resolved, nodes, gpus_per_node, device, size)
    print(json.dumps(result.to_json()) if as_json else render(result))


def memory_of(device: str, given: str | None) -> int | None:
    """Bytes of one device: those given, else its data sheet's; None where neither tells."""
    if given is not None:
        return parse_size(given)
    from megalm.device_rate import MEMORY_GIB

    return MEMORY_GIB[device] * 2**30 if device in MEMORY_GIB else None


def parse_size(text: str) -> int:
    """Bytes of `80GiB`, `80GB`, `1.5e9`; UserError for anything else."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    units = {name.lower(): size for name, size in _UNITS.items()}
    try:
        assert found is not None
        size = int(float(found[1]) * units[found[2].lower()])
    except (AssertionError, KeyError, OverflowError, ValueError):
        raise UserError(f"{text!r} is no size in bytes: write it like 80GiB or 80GB") from None
    if size == 0:
        raise UserError(f"{text!r}: a device without memory holds nothing; write its size like 80GiB")
    return size
