"""Refuses a number that is not a multiple of another, with the arithmetic."""

from megalm.errors import UserError


def divides(name: str, value: int, by_name: str, by: int) -> None:
    """Raise UserError unless `by` divides `value`; both are called by their names."""
    if value % by:
        raise UserError(
            f"{name} {value} is not a multiple of {by_name} {by}: {value} / {by} = {value / by:.3g}"
        )
