"""Draws the tree of where a model comes from as text."""

from collections.abc import Iterator

from megalm.lineage.tree import Node

_SHORT = 12
_HASHES = ("sha256", "hash", "code")


def render(node: Node) -> str:
    """A line for each thing, what it was made of below it; warnings on lines of their own."""
    return "\n".join([_line("", node), *_below(node, "")])


def _below(node: Node, indent: str) -> Iterator[str]:
    more = "│  " if node.parts else "   "
    yield from (f"{indent}{more}! {warning}" for warning in node.warnings)
    for number, (role, part) in enumerate(node.parts):
        is_last = number == len(node.parts) - 1
        yield f"{indent}{'└─ ' if is_last else '├─ '}{_line(role, part)}"
        yield from _below(part, indent + ("   " if is_last else "│  "))


def _line(role: str, node: Node) -> str:
    facts = [f"{name} {_value(name, value)}" for name, value in node.facts.items() if value not in (None, "")]
    told = ["told above"] if node.is_told else facts
    use = "" if role in ("", node.kind) else f"{role}: "
    return f"{use}{node.kind} {node.path}{' (' + '; '.join(told) + ')' if told else ''}"


def _value(name: str, value: object) -> str:
    if name in _HASHES and isinstance(value, str):
        digest, plus, changes = value.partition("+")
        return digest[:_SHORT] + plus + changes
    return f"{value:,}" if isinstance(value, int) else str(value)
