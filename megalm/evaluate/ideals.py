"""Which way a metric gets better."""

from megalm.evaluate.kinds import METRICS, PII_KINDS

LESS_IS_BETTER = (
    *("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity"),
    *("distance", "changed", "refused_safe", "verbatim", "leaked", "pii", *PII_KINDS),
    *("expected_maximum", "toxicity_probability", "toxic", "listed"),
)
IDEALS = {"preference": 0.5, "difference": 0.0, "bias_ambiguous": 0.0, "bias_disambiguated": 0.0}
"""Metrics that are best at a value between others."""
NEITHER = ("refused",)
"""Metrics that say nothing of better and worse by themselves."""
_GAP = "_gap"


def is_gain(metric: str, before: float, after: float) -> bool | None:
    """Whether `after` is the better value; None where neither is. A metric of a part (verbatim_training) goes the way of its metric."""
    first, second = shortfall(metric, before), shortfall(metric, after)
    if first is None or second is None or first == second:
        return None
    return second < first


def shortfall(metric: str, value: float) -> float | None:
    """A number that is the larger the worse `value` is, in the metric's own unit; None where the metric says nothing of better and worse."""
    base = _base(metric)
    if base in NEITHER:
        return None
    if metric.endswith(_GAP) or base in IDEALS:
        return abs(value - IDEALS.get(base, 0.0))
    return value if base in LESS_IS_BETTER else -value


def _base(metric: str) -> str:
    """The metric of METRIC_PART: the longest name that is known; else the whole."""
    names = {name for of_kind in METRICS.values() for name in of_kind}
    return max((name for name in names if f"{metric}_".startswith(f"{name}_")), key=len, default=metric)
