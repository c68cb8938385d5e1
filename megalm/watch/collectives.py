"""The collectives that this process made last, from torch's flight recorder, which keeps them for gloo and NCCL."""

import json
from typing import Any

import torch.distributed as dist

from megalm.parallel.layout import Layout
from megalm.watch.records import Collective

_AXES = ("tp", "pp", "cp", "ep", "dp", "dp_cp", "mp", "tp_ep", "expt_dp")


def last_collectives(layout: Layout) -> list[Collective]:
    """The last collective of each group that this process belongs to, the newest one last; pending ones of all."""
    found: dict[tuple[str, bool], Collective] = {}
    names = _names(layout)
    for entry in _entries():
        group, ranks = names.get(entry["process_group"][0], (" ".join(entry["process_group"]).strip(), []))
        # gloo's calls stay `scheduled` and are retired when they are done
        is_pending = not entry.get("retired", False) and entry.get("state") != "completed"
        collective = Collective(
            name=entry["profiling_name"].partition(":")[2] or entry["profiling_name"],
            group=group,
            ranks=ranks,
            number=int(entry["p2p_seq_id" if entry.get("is_p2p") else "collective_seq_id"]),
            sizes=entry.get("input_sizes") or [],
            dtypes=entry.get("input_dtypes") or [],
            is_pending=is_pending,
        )
        found.pop((group, is_pending), None)
        found[group, is_pending] = collective
    return list(found.values())


def _entries() -> list[dict[str, Any]]:
    """Oldest first."""
    from torch._C import _distributed_c10d as bindings

    name = "_dump_nccl_trace_json" if dist.is_initialized() and dist.get_backend() == "nccl" else ""
    dump = getattr(bindings, name, None) or getattr(bindings, "_dump_fr_trace_json", None)
    if dump is None:
        return []
    entries = json.loads(dump()).get("entries", [])
    return sorted(entries, key=lambda entry: entry["record_id"])


def _names(layout: Layout) -> dict[str, tuple[str, list[int]]]:
    """Our name and the ranks of each group by torch's name of it."""
    world = dist.distributed_c10d._world
    axes: dict[str, list[str]] = {}
    for axis in _AXES:
        group = getattr(layout.groups, axis, None)
        if isinstance(group, dist.ProcessGroup) and group in world.pg_names and group.size() > 1:
            axes.setdefault(world.pg_names[group], []).append(axis)
    names: dict[str, tuple[str, list[int]]] = {}
    for group, name in world.pg_names.items():
        ranks = sorted(world.pg_group_ranks.get(group, {}))
        ours = axes.get(name, [])
        is_world = group is dist.group.WORLD
        names[name] = (", ".join(ours[:2] or (["world"] if is_world else [f"group {name}"])), ranks)
    return names
