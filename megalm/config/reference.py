"""Renders the configuration's fields as a page for users."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from megalm.config.load import sections_in, tag_of
from megalm.config.schema import Config

_HEAD = """# Configuration

A run is a YAML file; every value can be changed on the command line as `section.key=value` (numbers select items of lists:
`data.train.0.weight=2`). Unknown keys and values of the wrong type are errors. What a run really used is written to
`RUN/config.yaml`. This page is made by `python tools/config_reference.py > docs/configuration.md`.
"""


def render_reference(presets: Iterable[str]) -> str:
    """Markdown with a table for each section, then the names of the model presets."""
    parts = [_HEAD, "## Top level\n\n" + table(Config, plain_only=True)]
    parts += inner_sections(Config)
    parts.append("## Model presets\n\n" + ", ".join(f"`{name}`" for name in presets) + "\n")
    return "\n".join(parts)


def inner_sections(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Heading, description and table of each section within `section`; titles begin with `prefix`."""
    parts = []
    for name, field in section.model_fields.items():
        kinds = sections_in(field.annotation)
        for inner in kinds:
            title = f"{prefix}{name}" + (f" (name: {tag_of(inner)})" if len(kinds) > 1 else "")
            doc = " ".join((inner.__doc__ or "").split())
            parts.append(f"## {title}\n\n{doc}\n\n{table(inner)}")
            parts += inner_sections(inner, f"{title}.")
    return parts


def table(section: type[BaseModel], plain_only: bool = False) -> str:
    """Markdown table of a section's fields; `plain_only` leaves out those that are sections themselves."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if plain_only and sections_in(field.annotation):
            continue
        default = _default(field)
        meaning = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_type_name(field.annotation)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _default(field: Any) -> str:
    if isinstance(field.default, BaseModel):
        return "see below"
    if field.default is not PydanticUndefined:
        return "" if field.default is None or field.default == "" else f"`{field.default}`"
    return "required" if field.default_factory is None else "see below"


def _type_name(annotation: Any) -> str:
    if sections_in(annotation):
        return "list of sections" if getattr(annotation, "__origin__", None) is list else "section"
    text = getattr(annotation, "__name__", None) if isinstance(annotation, type) else str(annotation)
    text = str(text).replace("typing.", "").replace("NoneType", "None").replace(" | None", "")
    if text.startswith("Literal["):
        text = " | ".join(part.strip().strip("'") for part in text[8:-1].split(","))
    return text.replace("|", "\\|")
