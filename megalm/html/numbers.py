"""Numbers as reports write them."""

import math


def counted(number: int) -> str:
    """With commas: 1,234,567."""
    return f"{number:,}"


def short(number: float) -> str:
    """In at most three digits: 0.05, 999, 1.2k, 35M."""
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**power * 0.9995 and abs(number) < 1e15:
            return f"{number / 10**power:.3g}{unit}"
    return f"{number:.3g}"


def percent(share: float) -> str:
    """A share of 1 with one decimal, or as many as tell it from 0 and 1: 12.3%, 0.004%."""
    for decimals in (1, 2, 3, 4):
        text = f"{share:.{decimals}%}"
        if float(text[:-1]) not in (0, 100) or share in (0, 1):
            return text
    return text


def duration(seconds: float) -> str:
    """In two units at most: 31 µs, 1.2 ms, 0.12 s, 45 s, 3 min 20 s, 5 h 12 min."""
    if 0 < seconds < 0.0995:
        return (
            f"{short(float(f'{1e6 * seconds:.2g}'))} µs" if seconds < 0.000995 else f"{1e3 * seconds:.2g} ms"
        )
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
