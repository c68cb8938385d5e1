"""The Jinja environment of chat templates: no way out of it, a bound on its work, and texts that stay tracked."""

import contextvars
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from megalm.tokenizer.tracked import Tracked, apply, concat, whole

GENERATION = -2
"""Source of what stands in `{% generation %}` blocks."""

# About a microsecond is a unit of work: a loop's turn, an operator, CHARACTERS_OF_WORK characters.
MAX_WORK = 1_000_000
CHARACTERS_OF_WORK = 50
WORK_OF_A_CALL = 10
WORK_OF_AN_ENTRY = 4
LEFT_OUT = ("random", "urlize", "pprint")
TEXTLESS = frozenset(
    "length count first last list map select selectattr reject rejectattr items default d batch slice groupby sort "
    "unique sum min max int float abs round reverse attr dictsort".split()
)
"""Filters that make no new text of their input."""
OF_ONE_STEP = frozenset("length count first last items default d int float abs round attr".split())
SIZED = frozenset("center ljust rjust zfill expandtabs indent tojson round batch slice".split())
"""Filters and methods whose result is as large as a number says."""
LONG_NUMBER = re.compile(r"\d{5}")

_EACH, _CONCAT = "_each", "_concat"

_work: contextvars.ContextVar[list[int]] = contextvars.ContextVar("work")


class TooMuchWork(jinja2.TemplateError):
    """A template that goes on and on, or whose text grows without end."""


def spend(units: int = 1) -> None:
    """Count work of the rendering that is going on; raises TooMuchWork beyond the bound."""
    left = _work.get(None)
    if left is None:
        return
    left[0] -= units
    if left[0] < 0:
        raise TooMuchWork("it does not come to an end: too many loop turns, calls or characters")


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The text of `template`, tracked where `variables` hold tracked texts; raises what jinja2 and Python raise."""
    token = _work.set([MAX_WORK])
    try:
        return template.render(variables)
    finally:
        _work.reset(token)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """What Hugging Face's chat templates are written for: its functions, filters, tags and white space rules."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=Missing,
            finalize=text_of,
            extensions=[Generation, loopcontrols],
        )
        filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters = {name: function for name, function in filters.items() if name not in LEFT_OUT}
        self.filters |= {"tojson": _to_json, _EACH: _each, _CONCAT: _concat_texts}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": partial(apply, datetime.now().strftime),
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": GuardedNamespace,
        }

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:  # type: ignore[override]
        """How the generated code joins the pieces of a template's text."""
        return concat(map(_paid, pieces))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        spend(WORK_OF_A_CALL)
        receiver = getattr(obj, "__self__", None)
        if not isinstance(receiver, str):
            return super().call(context, obj, *args, **kwargs)
        args = tuple(list(value) if isinstance(value, Iterator) else value for value in args)
        _charge(obj.__name__, receiver, (*args, *kwargs.values()))
        result = apply(partial(super().call, context, obj), *args, **kwargs)
        if isinstance(receiver, Tracked) and isinstance(result, str) and not isinstance(result, Tracked):
            return whole(result, receiver.sources())
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        spend(_weight_of_operation(operator, left, right))
        return apply(self.binop_table[operator], left, right) if operator != "+" else left + right

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        encodes = isinstance(obj, str) and attr in ("encode", "translate")  # bytes and tables are not tracked
        return not encodes and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        formatter = _BoundedFormatter(self)
        by_map = value.__name__ == "format_map"

        def filled(template: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
            return formatter.vformat(str.__str__(template), args, kwargs)

        def wrapper(*args: Any, **kwargs: Any) -> str:
            spend(weight((args, kwargs)))
            return apply(filled, value.__self__, () if by_map else args, args[0] if by_map else kwargs)

        return wrapper

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Rewriter().visit(source), *args, **kwargs)


class Missing(Undefined):
    """A variable that is not there: false and empty, but nothing that could be written."""

    __slots__ = ()

    def __str__(self) -> str:
        return self._fail_with_undefined_error()


class GuardedNamespace(Namespace):
    """`namespace()`, without names that mean something to Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as in Namespace, for namespace(self=...)
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what stands inside is what the assistant says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text = caller()
        spans = getattr(text, "spans", ())
        return Tracked(text, (*spans, (0, len(text), GENERATION))) if text else text


class _BoundedFormatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_width(format_spec)
        return super().format_field(value, format_spec)


class _Rewriter(NodeTransformer):
    """Puts two filters of ours where Jinja's generated code would neither count turns nor track texts."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(cast(nodes.Expr, node.iter), _EACH)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno, environment=node.environment), _CONCAT)


class _Counted:
    """What a loop runs over; each turn is work."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)


def text_of(value: Any) -> Any:
    """`value` as it is written: a text or what str() makes one of, lists and dictionaries already as tracked text."""
    if value is None or isinstance(value, (str, int, float, Undefined)):
        return value
    spend(weight(value))
    return apply(str, value)


def weight(value: Any) -> int:
    """Work of going through `value`: its texts, lists and dictionaries to the bottom."""
    if isinstance(value, str):
        return 1 + len(value) // CHARACTERS_OF_WORK
    if isinstance(value, Namespace):
        raise jinja2.TemplateError("a namespace has no text")
    if isinstance(value, (list, tuple, dict)):
        units = 1
        for entry in value:
            units += weight(entry) + (weight(value[entry]) if isinstance(value, dict) else 0)
            spend(WORK_OF_AN_ENTRY)
        return units
    return 1


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `function` with its work counted and its texts tracked."""
    wants = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @jinja2.pass_context  # also keeps Jinja from running it when the template is compiled
    def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        environment = {
            "context": (context,),
            "eval_context": (context.eval_ctx,),
            "environment": (context.environment,),
        }.get(wants or "", ())
        if isinstance(value, Iterator):
            value = list(_Counted(value))
        if name not in TEXTLESS:
            _charge(name, value, (*args, *kwargs.values()))
            return apply(partial(function, *environment), value, *args, **kwargs)
        spend(len(value) if isinstance(value, str) and name not in OF_ONE_STEP else WORK_OF_A_CALL)
        if name in SIZED:
            _charge(name, "", (*args, *kwargs.values()))
        return function(*environment, value, *args, **kwargs)

    return guarded


def _charge(name: str, value: Any, arguments: tuple[Any, ...]) -> None:
    """Count the work of a filter or method `name` of a text before it is done."""
    units = weight((value, arguments))
    spend(units)
    if name == "format" and isinstance(value, str):
        _check_width(value)
    if name in SIZED:
        spend(units * max((n for n in arguments if isinstance(n, int)), default=0))
    if name == "replace" and len(arguments) > 1:
        spend(str(value).count(str(arguments[0])) * len(str(arguments[1])) // CHARACTERS_OF_WORK)
    if name == "join" and arguments:
        separator, items = (value, arguments[0]) if isinstance(value, str) else (arguments[0], value)
        spend(len(str(separator)) * len(items) // CHARACTERS_OF_WORK)


def _weight_of_operation(operator: str, left: Any, right: Any) -> int:
    if operator == "%" and isinstance(left, str):
        _check_width(left)
        return weight((left, right))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return {"**": bits * max(right, 0), "*": bits + right.bit_length()}.get(operator, 1)
    times = 1 if operator == "+" else max((n for n in (left, right) if isinstance(n, int)), default=1)
    sizes = (_size(value) for value in (left, right))
    return 1 + sum(sizes) * max(times, 0)


def _size(value: Any) -> int:
    if isinstance(value, str):
        return -(-len(value) // CHARACTERS_OF_WORK)
    return len(value) if isinstance(value, (list, tuple)) else 0


def _check_width(specification: str) -> None:
    if LONG_NUMBER.search(specification) or "%*" in specification:
        raise TooMuchWork("it formats a text to a width of five digits or a computed one")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


@jinja2.pass_context
def _each(context: Context, items: Any) -> _Counted:
    return _Counted(items)


@jinja2.pass_context
def _concat_texts(context: Context, values: list[Any]) -> str:
    return concat(_paid(str(text_of(value))) for value in values)


def _paid(piece: str) -> str:
    spend(weight(piece))
    return piece


@jinja2.pass_context
def _to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in Hugging Face's templates: nothing escaped for HTML, and nothing of the result the template's own."""
    _charge("tojson", value, (indent,))
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return whole(text, _sources(value))


def _sources(value: Any) -> set[int]:
    if isinstance(value, Tracked):
        return value.sources()
    entries = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return set().union(*map(_sources, entries)) if isinstance(entries, (list, tuple)) else set()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace cannot hold the private name {name!r}")
