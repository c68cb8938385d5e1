"""Fills the templates and expressions of a task from a record."""

from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megalm.errors import UserError
from megalm.evaluate.forms import Record

_FAILURES = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


class Templates:
    """Compiles once what is filled for each record. `name`: of the task, for messages."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._environment = ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False
        )
        self._templates: dict[str, jinja2.Template] = {}
        self._expressions: dict[str, Any] = {}

    def text(self, field: str, source: str, record: Record) -> str:
        """The text that the template `source` of the task's `field` makes of a record."""
        try:
            if source not in self._templates:
                self._templates[source] = self._environment.from_string(source)
            return self._templates[source].render(**_names(record.row))
        except _FAILURES as error:
            raise self._failure(field, record, error) from None

    def value(self, field: str, source: str, record: Record) -> Any:
        """What the expression `source` of the task's `field` is for a record."""
        try:
            if source not in self._expressions:
                self._expressions[source] = self._environment.compile_expression(
                    source, undefined_to_none=False
                )
            found = self._expressions[source](**_names(record.row))
            if isinstance(found, jinja2.Undefined):
                found._fail_with_undefined_error()
            return found
        except _FAILURES as error:
            raise self._failure(field, record, error) from None

    def texts(self, field: str, source: str | list[str], record: Record) -> list[str]:
        """A list of templates filled, or the list of texts that an expression is."""
        if isinstance(source, list):
            return [self.text(field, one, record) for one in source]
        found = self.value(field, source, record)
        if not isinstance(found, list | tuple) or not found or not all(isinstance(one, str) for one in found):
            raise UserError(
                f"{record.where}: task {self._name}, `{field}` is {found!r:.80}, and a list of texts is needed; mend the file or the "
                "task"
            )
        return list(found)

    def _failure(self, field: str, record: Record, error: Exception) -> UserError:
        said = " ".join(str(error).split()) or type(error).__name__
        return UserError(
            f"{record.where}: task {self._name}, `{field}`: {said} (columns: {', '.join(record.row)}); mend the file or the task"
        )


def _names(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "row": row}
