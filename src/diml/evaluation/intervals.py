"""Bootstrap intervals of means over queries, and of paired differences of such means.

Legend: Q queries, C columns (a metric under a setting), S resamples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Ends of the 95 % percentile interval.
LEVELS = (2.5, 97.5)
#: Resamples that are drawn together: fewer calls, and what they need stays in the cache.
AT_ONCE = 8


def bootstrap_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means of S resamples of the queries with replacement; all columns share each resample, so they stay paired.

    Args:
        values: (Q, C), Q >= 1.
        resamples: S.
        seed: of the resampling.

    Returns:
        (S, C) means.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).
    """
    generator = np.random.default_rng(seed)
    queries = len(values)
    means = np.empty((resamples, values.shape[1]))
    for first in range(0, resamples, AT_ONCE):
        rows = min(AT_ONCE, resamples - first)
        drawn = generator.integers(queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        means[first : first + rows] = counts.astype(np.float64) @ values / queries
    return means


def interval(means: Floats) -> tuple[float, float]:
    """95 % percentile interval of (S,) bootstrap means."""
    low, high = np.percentile(means, LEVELS)
    return float(low), float(high)
