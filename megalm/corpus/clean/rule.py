"""Comparisons with thresholds that may be switched off."""


def above(value: float, limit: float | None) -> bool:
    """Whether `value` exceeds `limit`; None is no limit."""
    return limit is not None and value > limit


def below(value: float, limit: float | None) -> bool:
    """Whether `value` falls short of `limit`; None is no limit."""
    return limit is not None and value < limit
