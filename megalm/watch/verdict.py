"""Who hangs: what follows from the ranks' statements and from who is silent."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from megalm.watch.records import Collective, Pulse, Statement


@dataclass
class Silent:
    """A rank that did not answer. state: such as `is stopped (state T)`; stack: if it could be had. pulse: its last one."""

    state: str
    pulse: Pulse | None = None
    stack: str | None = None


@dataclass
class Verdict:
    """headline: one line that names the ranks that hang, and who waits for them. text: all that is known, for people."""

    ranks: list[int]
    headline: str
    text: str = field(repr=False)

    @property
    def rank(self) -> int | None:
        """The first of those that hang; None where nobody in particular does."""
        return min(self.ranks, default=None)


def judge(statements: Mapping[int, Statement], silent: Mapping[int, Silent], seconds: float) -> Verdict:
    """Blame ranks that are silent; else those that wait for nobody while others wait; else those behind in a group's calls.

    seconds: how long nothing has moved. Where all wait in the same call of the same group, none of them is to blame.
    """
    ranks, why = _blamed(statements, silent)
    step = max((one.pulse.step for one in statements.values()), default=0)
    waiting = {rank: _waits(one) for rank, one in statements.items() if rank not in ranks}
    for_whom = "".join(f"; {_names(group)} {text}" for text, group in _grouped(waiting))
    headline = f"no progress for {seconds:.0f} s after step {step}: {why}{for_whom}"
    parts = [headline]
    for rank in ranks:
        parts += _silent(rank, silent[rank]) if rank in silent else _speaking(rank, statements[rank])
    if not ranks:
        parts += _speaking(min(statements), statements[min(statements)])
    return Verdict(ranks, headline, "\n".join(parts))


def _blamed(statements: Mapping[int, Statement], silent: Mapping[int, Silent]) -> tuple[list[int], str]:
    """The ranks, and what is said of them."""
    if silent:
        said = {rank: _where(one.pulse) + one.state for rank, one in silent.items()}
        return sorted(silent), "; ".join(f"{_names(group)}{text}" for text, group in _grouped(said))
    waiting = [rank for rank, one in statements.items() if one.is_waiting]
    working = [rank for rank in statements if rank not in waiting]
    if working:
        said = {
            rank: f"{_where(statements[rank].pulse)}is at `{statements[rank].pulse.what}`, {statements[rank].at},"
            for rank in working
        }
        text = "; ".join(f"{_names(group)}{text}" for text, group in _grouped(said))
        return working, f"{text} and waits for nobody"
    behind = _behind(statements)
    if behind:
        said = {rank: f" of {statements[rank].pulse.host} {text}" for rank, text in behind.items()}
        return sorted(behind), "; ".join(f"{_names(group)}{text}" for text, group in _grouped(said))
    return [], "all ranks wait in the same call; look at the network and the devices"


def _behind(statements: Mapping[int, Statement]) -> dict[int, str]:
    """Ranks that have not come to the call in which others of the group wait, or that make another one in its place."""
    furthest: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
    for rank, one in statements.items():
        for call in _pending(one):
            key = (call.group, tuple(call.ranks))
            furthest[key] = max(furthest.get(key, (-1, -1)), (call.number, rank))
    found: dict[int, str] = {}
    for (group, ranks), (number, first) in furthest.items():
        expected = next(c for c in _pending(statements[first]) if (c.group, c.number) == (group, number))
        for rank in ranks:
            calls = [c for c in statements[rank].collectives if (c.group, tuple(c.ranks)) == (group, ranks)]
            newest = max(calls, key=lambda call: call.number, default=None)
            if newest is None or newest.number < number:
                at = f"is at #{newest.number}" if newest else "has made no call"
                found[rank] = f"{at} of {group}, others at #{number}: {_describe(expected)}"
            elif newest.number == number and newest.name != expected.name:
                found[rank] = f"makes {_describe(newest)} where others make {_describe(expected)}"
    return found


def _pending(one: Statement) -> list[Collective]:
    return [call for call in one.collectives if call.is_pending]


def _waits(one: Statement) -> str:
    pending = _pending(one)
    what = _describe(pending[-1]) if pending else "a message from another rank"
    return f"wait(s) in {what}, called at {one.at}"


def _describe(call: Collective) -> str:
    """Such as `all_reduce #12 of dp (ranks 0-1), Float [1024]`."""
    tensors = ", ".join(f"{kind} {size}" for kind, size in zip(call.dtypes, call.sizes, strict=False))
    ranks = f" ({_names(call.ranks)})" if call.ranks else ""
    return f"{call.name} #{call.number} of {call.group}{ranks}" + (f", {tensors[:200]}" if tensors else "")


def _silent(rank: int, one: Silent) -> list[str]:
    last = (
        f", last heard of after step {one.pulse.step}: {one.pulse.what}" if one.pulse else ", never heard of"
    )
    lines = [f"rank {rank}{_where(one.pulse)}{one.state}{last}"]
    return lines + (
        [f"its stack, the newest call first:\n{one.stack.rstrip()}"]
        if one.stack
        else ["its stack could not be had"]
    )


def _speaking(rank: int, one: Statement) -> list[str]:
    lines = [f"rank {rank}{_where(one.pulse)}is at: {one.pulse.what}"]
    if one.collectives:
        call = one.collectives[-1]
        lines.append(
            f"its last collective: {_describe(call)}, {'pending' if call.is_pending else 'finished'}"
        )
    return [*lines, f"its stack, the newest call first:\n{one.stack.rstrip()}"]


def _where(pulse: Pulse | None) -> str:
    return f" ({pulse.host}, process {pulse.pid}) " if pulse else " "


def _grouped(said: Mapping[int, str]) -> list[tuple[str, list[int]]]:
    """What is said, each once, with the ranks that it is said of."""
    groups: dict[str, list[int]] = {}
    for rank, text in sorted(said.items()):
        groups.setdefault(text, []).append(rank)
    return list(groups.items())


def _names(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0-6, 9`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank {text}" if text.isdigit() else f"ranks {text}"
