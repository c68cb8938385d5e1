"""Fills in the templates of reports: all that comes from data is escaped, and a page needs no other file."""

import re
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from megalm.html.numbers import counted, duration, percent, short

# What neither HTML nor XML may hold: controls but for tab and newline, halves of surrogate pairs, non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_BREAKS = re.compile("(?<=[./_])")


def render(package: str, template: str, values: dict[str, Any]) -> str:
    """The page that a template in the folder `templates` of `package` makes of `values`."""
    return environment(package).get_template(template).render(values)


def environment(package: str) -> Environment:
    """What fills in the templates of `package` and those of this one, `base.html.jinja` and `parts.html.jinja`.

    Every string is escaped unless it is Markup, which this package alone makes; a missing value is an error.
    """
    made = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("megalm.html")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "breakable": breakable,
        "counted": counted,
        "duration": duration,
        "percent": percent,
        "short": short,
    }
    return made


def breakable(name: str) -> Markup:
    """A long name that may be broken behind its dots, slashes and underscores."""
    return Markup("<wbr>").join(printable(part) for part in _BREAKS.split(name))


def printable(value: Any) -> Any:
    """A string with U+FFFD in the place of what a page cannot hold; other values, and Markup, as they are."""
    return _FORBIDDEN.sub("\ufffd", value) if type(value) is str else value
