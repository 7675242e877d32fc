"""Rates of accepted pairs or queries, with exact binomial bounds that allow for the dependence within classes.

Two pairs that share a class are not independent: one face that resembles another makes many false accepts together. An
exact binomial interval of the plain number of pairs is then far too narrow. The variance of a rate is estimated by
leaving out one class at a time, with all its pairs; it gives the number of independent pairs that would vary as much,
and the exact interval is that of this effective number.

Sources: Clopper and Pearson, Biometrika 1934; Korn and Graubard, Survey Methodology 1998 (effective number, degrees of
freedom); Snijders and Borgatti, Connections 1999 (jackknife for pairs).

Legend: P pairs or queries, C classes, T thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diml.calibration.pairs import Classes, Floats

#: Thresholds in a table of rates at most.
_THRESHOLDS = 100
#: From fewer accepted pairs their dependence cannot be estimated: that of the next threshold with as many is used.
_ENOUGH = 20
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class RateTable:
    """False-accept rates over thresholds: a pair is accepted where its score is at least the threshold.

    Args:
        scores: T thresholds, descending.
        rates: false-accept rate of each on the calibration pairs, ascending.
        bounds: upper bound of each rate, one-sided, with 95 % confidence; ascending.
        count: pairs, or queries, behind the rates.
    """

    scores: tuple[float, ...]
    rates: tuple[float, ...]
    bounds: tuple[float, ...]
    count: int

    def __post_init__(self) -> None:
        if not 1 <= len(self.scores) == len(self.rates) == len(self.bounds):
            raise ValueError("rates: need as many rates and bounds as scores, one at least")

    @classmethod
    def of(cls, scores: Floats, class_a: Classes, class_b: Classes | None = None) -> RateTable:
        """Tabulate the rates of (P,) scores that should not be accepted, of pairs of classes or of single classes."""
        descending = np.sort(scores)[::-1]
        counts = np.unique(np.geomspace(1, len(scores), _THRESHOLDS).round().astype(int))
        thresholds = np.unique(np.r_[np.nextafter(descending[0], np.inf), descending[counts - 1]])[::-1]
        dependence = Dependence.of(class_a, class_b)
        accepted = [scores >= threshold for threshold in thresholds]
        effects = np.array([dependence.design_effect(row) for row in accepted])
        enough = [effect for effect, row in zip(effects, accepted, strict=True) if row.sum() >= _ENOUGH]
        few = np.array([row.sum() < _ENOUGH for row in accepted])
        effects[few] = np.maximum(effects[few], enough[0] if enough else 1.0)
        rates = np.array([row.mean() for row in accepted])
        single = [dependence.upper_bound(rate, effect) for rate, effect in zip(rates, effects, strict=True)]
        # from the highest threshold down, a bound that fails ends the search: what follows may not pass again
        bounds = np.maximum.accumulate(single)
        return cls(
            scores=tuple(thresholds.tolist()),
            rates=tuple(rates.tolist()),
            bounds=tuple(bounds.tolist()),
            count=len(scores),
        )

    @property
    def smallest_rate(self) -> float:
        """The smallest rate that can be promised."""
        return self.bounds[0]

    def threshold(self, rate: float, *, promised: bool = True) -> float:
        """The smallest tabulated threshold whose bound (or, not promised, whose observed rate) is at most `rate`.

        Raises:
            ValueError: no rate, or one too small to be promised from that many pairs.
        """
        if not 0 < rate < 1:
            raise ValueError(f"false_accept_rate: need a fraction in (0, 1), got {rate}; 0.01 is 1 %")
        found = np.searchsorted(self.bounds if promised else self.rates, rate, side="right")
        if not found:
            raise ValueError(
                f"false_accept_rate: need at least {self.smallest_rate:.4g}, the smallest rate that the calibration's "
                f"{self.count:,} comparisons can promise with 95 % confidence, got {rate:g}; calibrate on more classes"
            )
        return self.scores[int(found) - 1]


@dataclass(frozen=True, eq=False, repr=False)
class Dependence:
    """Which of P pairs, or queries, share a class.

    Args:
        count: P.
        cells: (P,) number of the unordered pair of classes of each pair; of the class, for queries.
        first, second: the two classes of each cell; `second` is None for queries.
        classes: C.
    """

    count: int
    cells: NDArray[np.int64]
    first: Classes
    second: Classes | None
    classes: int

    @classmethod
    def of(cls, class_a: Classes, class_b: Classes | None = None) -> Dependence:
        """From the classes of both images of P pairs, or of P queries."""
        if class_b is None:
            first, cells = np.unique(class_a, return_inverse=True)
            return cls(len(class_a), cells, np.arange(len(first)), None, len(first))
        known, numbers = np.unique(np.concatenate([class_a, class_b]), return_inverse=True)
        one, other = numbers[: len(class_a)], numbers[len(class_a) :]
        low, high = np.minimum(one, other), np.maximum(one, other)
        keys, cells = np.unique(low * len(known) + high, return_inverse=True)
        return cls(len(class_a), cells, keys // len(known), keys % len(known), len(known))

    def design_effect(self, accepted: NDArray[np.bool_]) -> float:
        """Variance of the accepted fraction over that of independent pairs; at least 1."""
        rate = float(accepted.mean())
        if not 0 < rate < 1 or self.classes < 3:
            return 1.0
        hits, pairs = self._by_class(accepted), self._by_class(np.ones(self.count))
        others = self.count - pairs
        without = (accepted.sum() - hits) / np.maximum(others, 1)  # the rate without each class
        variance = float(((without - rate)[others > 0] ** 2).sum()) * (self.classes - 1) / self.classes
        return max(1.0, variance * self.count / (rate * (1 - rate)))

    def _by_class(self, values: Floats | NDArray[np.bool_]) -> Floats:
        """(C,) sums of (P,) values over the pairs of each class."""
        sums = np.bincount(self.cells, values, minlength=len(self.first)).astype(np.float64)
        if self.second is None:
            return sums
        apart = self.first != self.second
        found = np.bincount(self.first, sums, minlength=self.classes).astype(np.float64)
        return found + np.bincount(self.second[apart], sums[apart], minlength=self.classes)

    def effective_count(self, design_effect: float, tail: float) -> float:
        """Independent pairs that would vary as much, fewer where there are few classes to estimate that from."""
        from scipy import stats  # type: ignore[import-untyped]

        if self.classes < 2:
            return 1.0
        few = float(stats.norm.ppf(1 - tail) / stats.t.ppf(1 - tail, self.classes - 1)) ** 2
        return max(1.0, self.count / design_effect * few)

    def upper_bound(self, rate: float, design_effect: float) -> float:
        """One-sided upper bound of a rate with 95 % confidence."""
        from scipy import stats

        count = self.effective_count(design_effect, 1 - CONFIDENCE)
        return float(stats.beta.ppf(CONFIDENCE, rate * count + 1, (1 - rate) * count)) if rate < 1 else 1.0

    def interval(self, accepted: NDArray[np.bool_]) -> tuple[float, float]:
        """Two-sided 95 % interval of the accepted fraction."""
        from scipy import stats

        rate, tail = float(accepted.mean()), (1 - CONFIDENCE) / 2
        count = self.effective_count(self.design_effect(accepted), tail)
        low = float(stats.beta.ppf(tail, rate * count, (1 - rate) * count + 1)) if rate > 0 else 0.0
        high = float(stats.beta.ppf(1 - tail, rate * count + 1, (1 - rate) * count)) if rate < 1 else 1.0
        return low, high
