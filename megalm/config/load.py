"""Reads YAML, presets and `key=value` overrides into a checked Config, and writes the resolved one."""

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from megalm import atomic
from megalm.config.checks import check
from megalm.config.presets import model_preset
from megalm.config.schema import Config
from megalm.config.suggest import nearest
from megalm.errors import UserError


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's reader would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"the key `{key.value}` stands twice, put its values together",
                        key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file `path`, apply `section.key=value` overrides, fill from the preset and check.

    Values of overrides are read as YAML. Anything wrong raises UserError with one line.
    """
    path = Path(path)
    data = read_yaml(path)
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected sections (run, model, data, ...), found {type(data).__name__}")
    return parse_config(data, overrides, where=str(path))


def parse_config(data: dict[str, Any], overrides: Sequence[str] = (), where: str = "configuration") -> Config:
    """The same from a dictionary in memory."""
    data = override(data, overrides)
    model = data.get("model")
    if isinstance(model, dict) and model.get("preset"):
        data["model"] = _fill(model, model_preset(str(model["preset"])))
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        _, field = _resolve(Config, error.errors(include_url=False)[0]["loc"])
        location = ".".join(map(str, field))
        keys = {change.partition("=")[0]: f"override {change!r}" for change in overrides}
        raise UserError(f"{keys.get(location, where)}: {explain(error)}") from None
    check(config)
    return config


def dump_config(config: Config, path: str | Path) -> None:
    """Write the resolved configuration as YAML, in one step."""
    atomic.write_text(path, yaml.safe_dump(config.model_dump(), sort_keys=False))


def assign(key: str, value: str | int) -> str:
    """An override by which `key` gets `value`, whatever signs are in it."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested dictionaries with `a.b.c=value` applied."""
    data = _copy(data)
    for change in overrides:
        _apply(data, change)
    return data


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises UserError for a file that is not there or is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {_one_line(error)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None


def _fill(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """`data` with what it lacks, in sections within it too, taken from `defaults`."""
    sections = {key: value for key, value in data.items() if isinstance(value, dict)}
    filled = {key: _fill(value, defaults[key]) for key, value in sections.items() if key in defaults}
    return defaults | data | filled


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `a.b.c=value` in nested dictionaries; numbers select items of lists."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: expected key=value, for instance optimizer.lr=3e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from None
    if isinstance(value, str) and value == text.strip():  # in quotes it is meant to be text
        value = _number(value)
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        if isinstance(node, list):
            node = node[_list_index(node, part, override)]
            continue
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict | list):
            raise UserError(f"override {override!r}: {part!r} is a value, not a section")
    if isinstance(node, list):
        node[_list_index(node, last, override)] = value
    else:
        node[last] = value


def _list_index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise UserError(f"override {override!r}: {part!r} is no index of a list of {len(items)}")
    return int(part)


def _number(text: str) -> Any:
    """YAML 1.1 reads 3e-4 as a string; users mean a number."""
    try:
        return float(text)
    except ValueError:
        return text


_KIND = re.compile(r"str|int|float|bool|none|(list|dict|literal|tuple)\[.*")
"""What pydantic puts behind a field's name for one of the kinds of values that it may hold."""
_SHOULD = "Input should be "


def explain(error: ValidationError, section: type[BaseModel] = Config) -> str:
    """Turn pydantic's first complaint about a `section` into one line: the field, the value and the mend."""
    errors = error.errors(include_url=False)
    first = errors[0]
    field = tuple(takewhile(lambda part: not _KIND.fullmatch(str(part)), first["loc"]))
    _, named = _resolve(section, field)
    location = ".".join(map(str, named))
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return _explain_tag(location, first, section)
    if first["type"] == "extra_forbidden":
        inner, _ = _resolve(section, first["loc"][:-1])
        known = list(inner[0].model_fields)
        return f"unknown key `{location}`{nearest(str(first['loc'][-1]), known)} (known: {', '.join(known)})"
    if first["type"] == "missing":
        return f"`{location}` is missing"
    if first["type"] == "model_type":
        return f"`{location}` = {first['input']!r}: a section is expected, keys with values"
    # of a field of several kinds each kind complains
    same = [other["msg"] for other in errors if other["loc"][: len(field)] == field != other["loc"]]
    told = " or ".join(dict.fromkeys([first["msg"], *(message.replace(_SHOULD, "") for message in same[1:])]))
    told = (told[:1].lower() + told[1:]).removeprefix("value error, ")
    if isinstance(first["input"], dict):  # of keys that do not go together
        return f"`{location}`: {told}" if location else told
    return f"`{location}` = {first['input']!r}: {told}"


def _explain_tag(location: str, error: Any, section: Any) -> str:
    """What is wrong with the field that tells sections of several kinds apart."""
    kinds, _ = _resolve(section, error["loc"])
    field = error["ctx"]["discriminator"].strip("'")
    known = [tag_of(kind) for kind in kinds]
    if error["type"] == "union_tag_not_found":
        return f"`{location}.{field}` is missing (known: {', '.join(known)})"
    found = error["ctx"]["tag"]
    return f"`{location}.{field}` = {found!r} is unknown{nearest(found, known)} (known: {', '.join(known)})"


def _resolve(section: Any, location: tuple[Any, ...]) -> tuple[list[Any], tuple[Any, ...]]:
    """Sections that may stand at `location` within `section`, and the location as a user writes it.

    Of sections of several kinds pydantic puts the kind into the location.
    """
    kinds, written = [section], []
    for part in location:
        if len(kinds) > 1 and (chosen := [kind for kind in kinds if tag_of(kind) == part]):
            kinds = chosen
            continue
        written.append(part)
        if isinstance(part, str) and part in getattr(kinds[0], "model_fields", {}):
            kinds = sections_in(kinds[0].model_fields[part].annotation) or kinds
    return kinds, tuple(written)


def sections_in(annotation: Any) -> list[Any]:
    """The sections inside an annotation such as `list[Section]`; several where it is of several kinds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in get_args(annotation) for found in sections_in(arg)]


def tag_of(section: type[BaseModel]) -> str:
    """The name that tells a section from others that may stand in its place."""
    return str(section.model_fields["name"].default)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
