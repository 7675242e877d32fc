"""The scale that a score is placed on: common to all pairs of a model, with landmarks.

A bar that is always as long as the score of its pair makes 1.3 look like 1.6. Ends and landmarks here depend on the
model (from its calibration) or, without a calibration, on the settings of the matcher only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diml.matching import Matcher

if TYPE_CHECKING:
    from diml.calibration import Calibrator

Landmark = Literal["different", "same", "itself"]


@dataclass(frozen=True)
class Mark:
    """A landmark: the typical score of a kind of pairs."""

    value: float
    kind: Landmark
    label: str


@dataclass(frozen=True)
class Band:
    """The range of the scores of 90 % of a kind of pairs: quantiles 5 and 95 %."""

    kind: Landmark
    low: float
    high: float


@dataclass(frozen=True)
class Scale:
    """The ends of the scale and what lies on it; scores beyond the ends are drawn at them.

    Args:
        low, high: ends.
        marks: typical scores, ascending.
        bands: ranges of the scores of different-class and of same-class pairs; none without a calibration.
    """

    low: float
    high: float
    marks: tuple[Mark, ...]
    bands: tuple[Band, ...] = ()


def highest_score(matcher: Matcher) -> float:
    """The score of an image with itself under the exact plan, which no pair exceeds."""
    transported = 1.0 if matcher.share == "auto" else float(matcher.share)
    return matcher.combine(1.0, transported)


def common_scale(matcher: Matcher, calibrator: Calibrator | None = None, kind: str = "class") -> Scale:
    """The scale for the scores of a matcher, with the landmarks of a calibration where there is one.

    Args:
        matcher: settings of the comparison.
        calibrator: of the model; None for a scale from 0 to the score of an image with itself.
        kind: what images of one class have in common, in words.
    """
    if calibrator is None:
        high = highest_score(matcher)
        return Scale(0.0, high, (Mark(high, "itself", "an image with itself"),))
    seen = calibrator.landmarks
    # a quarter of the way from different pairs to an image with itself is left below the lowest of them
    low = seen.different[0] - 0.25 * (seen.self_match - seen.different[0])
    marks = (
        Mark(seen.different[2], "different", f"different {plural(kind)}, typically"),
        Mark(seen.same[2], "same", f"the same {kind}, typically"),
        Mark(seen.self_match, "itself", "an image with itself"),
    )
    bands = (Band("different", seen.different[0], seen.different[-1]), Band("same", seen.same[0], seen.same[-1]))
    highest = max(seen.self_match, seen.same[-1])
    return Scale(_rounded(low, math.floor), _rounded(highest, math.ceil), tuple(sorted(marks, key=_value)), bands)


def plural(kind: str) -> str:
    """The plural of a regular English noun: class, product, category."""
    if kind.endswith("y") and kind[-2:-1] not in tuple("aeiou"):
        return kind[:-1] + "ies"
    return kind + ("es" if kind.endswith(("s", "x", "z", "ch", "sh")) else "s")


def _value(mark: Mark) -> float:
    return mark.value


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    """To a twentieth, away from the landmarks."""
    return round(towards(round(20 * value, 6)) / 20, 2)
