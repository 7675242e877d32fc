"""Means over queries with bootstrap intervals, and differences of such means, paired by query.

Legend: Q queries, C columns (a metric under a setting), S resamples, G groups of queries.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Ends of the 95 % percentile interval.
LEVELS = (2.5, 97.5)
#: Resamples that are drawn together: fewer calls, and their counts stay in the cache.
RESAMPLES_AT_ONCE = 8
#: More would take hours and gigabytes, for intervals that change in the fourth digit.
MOST_RESAMPLES = 1_000_000


class Interval(NamedTuple):
    """A mean over the queries with its 95 % bootstrap interval, as fractions."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies above or below 0: of a difference, whether one is shown."""
        return self.low > 0 or self.high < 0


class PairedMeans:
    """Means of several columns over the same queries; all columns share the resamples, so that differences are paired.

    Args:
        columns: key -> (Q,) values of the queries, Q >= 1.
        resamples: S.
        seed: of the resampling.
        queries: (Q,) image of each query; those of one image, under several draws of queries and gallery, are drawn
            together. None: every query is an image of its own.
    """

    def __init__(
        self,
        columns: Mapping[Any, Floats],
        resamples: int,
        seed: int,
        queries: NDArray[np.int64] | None = None,
    ) -> None:
        self._place = {key: place for place, key in enumerate(columns)}
        self._values = np.stack(list(columns.values()), axis=1)
        self._resamples, self._seed, self._queries = resamples, seed, queries
        self._mean: Floats = self._values.mean(axis=0)

    def mean(self, key: Hashable) -> Interval:
        """Mean of a column."""
        place = self._place[key]
        return Interval(float(self._mean[place]), *interval(self._samples[:, place]))

    def difference(self, key: Hashable, against: Hashable) -> Interval:
        """Mean of a column minus that of another."""
        one, other = self._place[key], self._place[against]
        return Interval(
            float(self._mean[one] - self._mean[other]), *interval(self._samples[:, one] - self._samples[:, other])
        )

    @cached_property
    def _samples(self) -> Floats:
        """(S, C) means of the resamples."""
        groups = None if self._queries is None else np.unique(self._queries, return_inverse=True)[1]
        if groups is not None and len(groups) <= groups.max(initial=0) + 1:
            groups = None  # every image once
        return bootstrap_means(self._values, self._resamples, self._seed, groups)


def bootstrap_means(values: Floats, resamples: int, seed: int, groups: NDArray[np.intp] | None = None) -> Floats:
    """Means of S resamples of the queries with replacement; all columns share each resample, so they stay paired.

    Args:
        values: (Q, C), Q >= 1.
        resamples: S.
        seed: of the resampling.
        groups: (Q,) 0 to G - 1; queries of one group are drawn together, being one image under several draws. None:
            every query alone.

    Returns:
        (S, C) means; raises ValueError without resamples.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).
    """
    check_resamples(resamples)
    generator = np.random.default_rng(seed)
    sizes = None if groups is None else np.bincount(groups).astype(np.float64)
    if groups is not None and sizes is not None:
        sums = np.zeros((len(sizes), values.shape[1]))
        np.add.at(sums, groups, values)
        values = sums
    queries = len(values)
    means = np.empty((resamples, values.shape[1]))
    for first in range(0, resamples, RESAMPLES_AT_ONCE):
        rows = min(RESAMPLES_AT_ONCE, resamples - first)
        drawn = generator.integers(queries, size=(rows, queries)) + queries * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        weight = counts.astype(np.float64)
        means[first : first + rows] = weight @ values / (queries if sizes is None else (weight @ sizes)[:, None])
    return means


def check_resamples(resamples: int) -> None:
    """Raise ValueError for a number of resamples that is too small, or so large that it must be a mistake."""
    if not 1 <= resamples <= MOST_RESAMPLES:
        raise ValueError(f"resamples: need 1 to {MOST_RESAMPLES:,}, got {resamples}")


def interval(means: Floats) -> tuple[float, float]:
    """95 % percentile interval of (S,) bootstrap means."""
    low, high = np.percentile(means, LEVELS)
    return float(low), float(high)
