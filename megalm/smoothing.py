"""The moving average that learning curves are smoothed with, wherever they are drawn."""

import numpy as np


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a fiftieth of the values (3 at least), narrower at the ends; NaNs are left out."""
    half = max(1, len(values) // 100)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, index[::-1]))
    low, high = index - reach, index + reach + 1
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)
