"""Which node has which ranks: neighbours in the network are neighbours in the world, and who talks to whom over it."""

import os
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from megalm.cluster import slurm
from megalm.config import Config
from megalm.config.rlhf_ranks import TRAINING, ranks_by_world
from megalm.errors import UserError

_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class NodePlace:
    """This node among those of its job. hosts: all of them, in the order of their ranks."""

    number: int
    hosts: tuple[str, ...]

    @property
    def address(self) -> str:
        """Where the world meets."""
        return self.hosts[0]


def by_topology(hosts: Sequence[str], switches: Sequence[slurm.Fields]) -> list[str]:
    """The hosts so that those below one switch follow each other, at every level of `switches` (`scontrol show topology`: switches of
    a tree, or blocks and blocks of blocks).

    Tensor-parallel ranks lie within a node, then come context, data and pipeline parallelism: the closer two ranks are, the more they
    have to say to each other. Hosts that no switch names keep their order, at the end.
    """
    paths: dict[str, list[int]] = {host: [] for host in hosts}
    below = [expand(switch.get("Nodes", "")) for switch in switches]
    for number, nodes in sorted(enumerate(below), key=lambda each: -len(each[1])):  # the larger one is above
        for host in paths.keys() & set(nodes):
            paths[host].append(number)
    first = {switch: place for place, host in reversed(list(enumerate(hosts))) for switch in paths[host]}
    return sorted(hosts, key=lambda host: (not paths[host], [first[switch] for switch in paths[host]]))


def expand(names: str) -> list[str]:
    """Names of a list as SLURM writes it: `gpu[01-03,7],login` are gpu01, gpu02, gpu03, gpu7, login."""
    found = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        found += _expand(part)
    return found


def _expand(name: str) -> list[str]:
    match = re.search(r"\[([^\]]*)\]", name)
    if match is None:
        return [name]
    head, tail, found = name[: match.start()], name[match.end() :], []
    for span in match.group(1).split(","):
        low, _, high = span.partition("-")
        for number in range(int(low), int(high or low) + 1):
            found += _expand(f"{head}{number:0{len(low)}}{tail}")
    return found


def place_of_node() -> NodePlace:
    """This node among those of the job in which it runs, by SLURM's variables; alone outside SLURM."""
    names = os.environ.get("SLURM_JOB_NODELIST", "")
    if not names or slurm.own_job() is None:
        return NodePlace(0, (socket.gethostname(),))
    hosts = expand(names)
    own = hosts[int(os.environ["SLURM_NODEID"])]
    try:
        switches = slurm.show("topology")
    except UserError:  # a cluster without a topology says so by an error
        switches = []
    ordered = by_topology(hosts, switches)
    return NodePlace(ordered.index(own), tuple(ordered))


def network(place: NodePlace) -> dict[str, str]:
    """The variables by which gloo and NCCL take the interface that leads to the other nodes, where the user has set none.

    A node's own name may stand for an address that no other node can reach (127.0.1.1 in /etc/hosts).
    """
    if len(place.hosts) == 1:
        return {}
    other = place.hosts[1] if place.number == 0 else place.address
    name = _interface_to(other)
    return {f"{library}_SOCKET_IFNAME": name for library in ("GLOO", "NCCL")} if name else {}


def _interface_to(host: str) -> str | None:
    """The network interface whose address this machine would send from."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # nothing is sent
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                if _address_of(probe, name) == own:
                    return name
    except OSError:
        return None
    return None


def _address_of(probe: socket.socket, name: str) -> str | None:
    import fcntl  # not on every system

    try:
        answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError:  # it has no address
        return None
    return socket.inet_ntoa(answer[20:24])


def usable_nodes(config: Config, nodes: int, processes: int) -> int:
    """The largest number of nodes, at most `nodes`, that the layout can share a batch among; UserError where there is none."""
    refusal = None
    for count in range(nodes, 0, -1):
        try:
            ranks_by_world(config, count * processes)
        except UserError as error:
            refusal = refusal or error
        else:
            return count
    assert refusal is not None
    raise refusal


def describe(config: Config, nodes: int, processes: int) -> list[str]:
    """Lines that say which axes of the layout stay inside a node and which go over the network, and which node holds what."""
    parallel = config.parallel
    ranks = ranks_by_world(config, nodes * processes)
    training = ranks[TRAINING]
    sizes = {"TP": parallel.tensor_model_parallel_size, "CP": parallel.context_parallel_size}
    stages = parallel.pipeline_model_parallel_size
    sizes |= {"DP": training // (sizes["TP"] * sizes["CP"] * stages), "PP": stages}
    lines, stride = [], 1
    for name, size in sizes.items():
        if size > 1:
            inside = processes % (stride * size) == 0 or stride * size * nodes <= processes
            where = "inside a node" if inside else "over the network"
            lines.append(f"{name} {size}: ranks {stride} apart, {where}")
        stride *= size
    first = 0
    for name, count in ranks.items():
        if len(ranks) > 1:
            lines.append(f"{name}: ranks {first} to {first + count - 1}")
        first += count
    for node in range(nodes):
        low, high = node * processes, min((node + 1) * processes, training) - 1
        if low > high:
            continue
        per_stage = training // stages
        held = sorted({rank // per_stage for rank in range(low, high + 1)})
        stage = f", stage {' and '.join(map(str, held))}" if stages > 1 else ""
        copies = sorted({rank % per_stage // (sizes["TP"] * sizes["CP"]) for rank in range(low, high + 1)})
        copy = (
            f", copy {copies[0]}" + (f" to {copies[-1]}" if len(copies) > 1 else "")
            if sizes["DP"] > 1
            else ""
        )
        lines.append(f"node {node}: ranks {low} to {high}{stage}{copy}")
    return lines
