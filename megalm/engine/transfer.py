"""Passes weights in memory from an engine to one of another layout, on the same ranks or on others."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from megalm.engine.base import Engine
from megalm.engine.held import Box, Reader, dtype_of, held_by
from megalm.errors import UserError
from megalm.model.lora import is_adapter

BUCKET_BYTES = 64 << 20
"""What a rank sends or receives at a time, beside the engines; one row of a tensor at least."""


class _Described(NamedTuple):
    """What a rank says of one of its boxes, and its number there."""

    rank: int
    number: int
    shape: tuple[int, ...]
    box: Box
    dtype: torch.dtype


class _Move(NamedTuple):
    """A box on its way between two ranks' numbered boxes, in the narrower of their formats."""

    source: tuple[int, int]
    target: tuple[int, int]
    box: Box
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """On the wire, filled up so that the next one is aligned."""
        return -(-math.prod(self.box.size) * self.dtype.itemsize // 8) * 8


class _Exchange(NamedTuple):
    """One rank's part of a round: moves within it, and by the other rank those that it receives and sends."""

    here: list[_Move]
    received: list[list[_Move]]
    sent: list[list[_Move]]

    @classmethod
    def empty(cls, world_size: int) -> "_Exchange":
        """A round without moves."""
        return cls([], [[] for _ in range(world_size)], [[] for _ in range(world_size)])

    @property
    def bytes(self) -> tuple[int, int]:
        """Received and sent."""
        received, sent = (sum(move.bytes for part in parts for move in part) for parts in self[1:])
        return received, sent

    def add(self, move: _Move, rank: int) -> None:
        """Put a move that `rank` takes part in where it belongs."""
        (sender, _), (receiver, _) = move.source, move.target
        if sender == receiver:
            self.here.append(move)
        elif sender == rank:
            self.sent[receiver].append(move)
        else:
            self.received[sender].append(move)


class WeightTransfer:
    """The way from the weights of one engine to those of another, planned once and gone as often as wanted.

    Each rank receives the parts that it holds of the target and lacks of the source, from a rank that has them, and no
    others; memory is bounded by BUCKET_BYTES. Values are equal, but where the formats differ rounded to the target's.
    """

    def __init__(self, source: Engine | None, target: Engine | None, group: Any = None) -> None:
        """Plan. Collective over `group`, the world by default; it may span worlds (`megalm.parallel.bridge`).

        A rank gives the engines that it has a part of. A target without adapters gets the source's with adapters added to
        the weights; one that has some where the source has none keeps them. Raises UserError where the target has a weight
        that the source lacks or has in another shape.
        """
        self.source, self.target = source, target
        self.group = cast(Any, dist.group.WORLD if group is None else group)
        engine = source or target
        over_cpu = engine is None or isinstance(group, dist.ProcessGroupGloo) or _is_gloo(group)
        self.device = torch.device("cpu") if over_cpu or engine is None else engine.layout.device
        mine = [held_by(one) if one is not None else [] for one in (source, target)]
        described = self._gather([[held.describe() for held in part] for part in mine])
        has_adapters = [
            any(is_adapter(one[0]) for rank in described for one in rank[side]) for side in (0, 1)
        ]
        self.merges = has_adapters[0] and not has_adapters[1]
        self._held = mine
        sources = _by_name(described, 0)
        targets = _by_name(described, 1)
        if has_adapters[1] and not has_adapters[0]:
            targets = {name: boxes for name, boxes in targets.items() if not is_adapter(name)}
        rank, size = self.group.rank(), self.group.size()
        self._rounds = list(_rounds(_moves(sources, targets, size), rank, size))

    @property
    def traffic(self) -> list[tuple[int, int]]:
        """Bytes that this rank receives and sends in each round."""
        return [exchange.bytes for exchange in self._rounds]

    @torch.no_grad()
    def run(self) -> None:
        """Pass the weights on as they are now. Collective over the group."""
        reader = None
        if self.source is not None:
            self.source.gather_weights()
            reader = Reader(self.source, self.merges)
        if self.target is not None:
            self.target.gather_weights()  # none that is on its way may come after
        # made once: fresh memory costs as much as what is written into it
        sizes = [max(exchange.bytes[side] for exchange in self._rounds) for side in (0, 1)]
        memory = [torch.empty(size, dtype=torch.uint8, device=self.device) for size in sizes]
        for exchange in self._rounds:
            self._exchange(exchange, reader, memory)
        if self.target is not None:
            self.target.weights_changed()

    def _exchange(self, exchange: _Exchange, reader: Reader | None, memory: list[Tensor]) -> None:
        for move in exchange.here:
            self._place(move, self._take(move, reader))
        splits = [[sum(move.bytes for move in part) for part in parts] for parts in exchange[1:]]
        incoming, outgoing = (whole[: sum(part)] for whole, part in zip(memory, splits, strict=True))
        for move, place in _cut(outgoing, exchange.sent):
            place.copy_(self._take(move, reader))
        self.group.alltoall_base(incoming, outgoing, *splits).wait()
        for move, place in _cut(incoming, exchange.received):
            self._place(move, place)

    def _take(self, move: _Move, reader: Reader | None) -> Tensor:
        assert reader is not None
        held = self._held[0][move.source[1]]
        return reader.read(held)[move.box.within(held.box)]

    def _place(self, move: _Move, values: Tensor) -> None:
        held = self._held[1][move.target[1]]
        held.of(held.parameter.detach())[move.box.within(held.box)].copy_(values)

    def _gather(self, mine: Any) -> list[Any]:
        """What each rank of the group says, as JSON."""
        data = torch.frombuffer(bytearray(json.dumps(mine).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.group.size())]
        self.group.allgather([sizes], [torch.tensor([len(data)], device=self.device)]).wait()
        longest = max(map(int, sizes))
        texts = [torch.empty(longest, dtype=torch.uint8, device=self.device) for _ in sizes]
        padded = torch.cat([data, data.new_zeros(longest - len(data))])
        self.group.allgather([texts], [padded]).wait()
        return [
            json.loads(text[: int(size)].cpu().numpy().tobytes())
            for text, size in zip(texts, sizes, strict=True)
        ]


def sync_weights(source: Engine, target: Engine) -> None:
    """Copy all weights of an engine into one of another layout on the same ranks; see `WeightTransfer`. Collective."""
    WeightTransfer(source, target).run()


def _is_gloo(group: Any) -> bool:
    return (group is None or isinstance(group, dist.ProcessGroup)) and dist.get_backend(group) == "gloo"


def _by_name(described: list[Any], side: int) -> dict[str, list[_Described]]:
    """The boxes of each full tensor on all ranks, those of the source (0) or of the target (1)."""
    found: dict[str, list[_Described]] = defaultdict(list)
    for rank, sides in enumerate(described):
        for number, (name, shape, start, size, dtype) in enumerate(sides[side]):
            box = Box(tuple(start), tuple(size))
            found[name].append(_Described(rank, number, tuple(shape), box, dtype_of(dtype)))
    return found


def _moves(
    sources: dict[str, list[_Described]], targets: dict[str, list[_Described]], world_size: int
) -> Iterator[_Move]:
    """What must go where, a tensor after another, the same on every rank; the senders have about as much to send each."""
    load = [0] * world_size
    for name in sorted(targets):
        holders: dict[Box, list[_Described]] = defaultdict(list)
        for one in sources.get(name, []):
            holders[one.box].append(one)
        for target in targets[name]:
            missing = math.prod(target.box.size)
            for box, candidates in holders.items():
                common = box.intersect(target.box) if candidates[0].shape == target.shape else None
                if common is None:
                    continue
                own = [one for one in candidates if one.rank == target.rank]
                source = own[0] if own else min(candidates, key=lambda one: load[one.rank])
                narrow = target.dtype if target.dtype.itemsize <= source.dtype.itemsize else source.dtype
                missing -= math.prod(common.size)
                for piece in _pieces(common, narrow.itemsize):
                    move = _Move((source.rank, source.number), (target.rank, target.number), piece, narrow)
                    load[source.rank] += 0 if own else move.bytes
                    yield move
            if missing:
                shapes = sorted({one.shape for one in sources.get(name, [])})
                raise UserError(
                    f"the weight {name} has shape {target.shape} in the model to be written, and "
                    f"{shapes or 'no place'} in the one that is read: both must be of one model"
                )


def _pieces(box: Box, itemsize: int) -> Iterator[Box]:
    """The box in parts of whole rows that fit into a bucket."""
    rows = max(1, BUCKET_BYTES // (math.prod(box.size[1:]) * itemsize))
    for first in range(0, box.size[0], rows):
        count = min(rows, box.size[0] - first)
        yield Box((box.start[0] + first, *box.start[1:]), (count, *box.size[1:]))


def _rounds(moves: Iterator[_Move], rank: int, world_size: int) -> Iterator[_Exchange]:
    """This rank's part of each round; in none has any rank more than a bucket to send or to receive."""
    mine = _Exchange.empty(world_size)
    traffic = [[0, 0] for _ in range(world_size)]
    for move in moves:
        (sender, _), (receiver, _) = move.source, move.target
        if sender != receiver:
            if max(traffic[sender][0], traffic[receiver][1]) + move.bytes > BUCKET_BYTES:
                yield mine
                mine, traffic = _Exchange.empty(world_size), [[0, 0] for _ in range(world_size)]
            traffic[sender][0] += move.bytes
            traffic[receiver][1] += move.bytes
        if rank in (sender, receiver):
            mine.add(move, rank)
    yield mine


def _cut(memory: Tensor, parts: list[list[_Move]]) -> Iterator[tuple[_Move, Tensor]]:
    """The place of each move in the bytes that all of them share."""
    begin = 0
    for move in (move for part in parts for move in part):
        count = math.prod(move.box.size) * move.dtype.itemsize
        yield move, memory[begin : begin + count].view(move.dtype).view(move.box.size)
        begin += move.bytes
