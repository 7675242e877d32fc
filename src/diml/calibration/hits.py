"""What a calibration says of the hits of one query: how likely each is right, and whether the query is there at all.

Legend: K re-ranked candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from diml.calibration.calibrator import Calibrator

#: Share of the queries whose class is missing from the gallery that may be taken to be there, unless one is given.
FALSE_ACCEPT_RATE: Final = 0.05

#: From this share of the queries that are there on, a query that is not recognised is said to be missing.
_SURE: Final = 0.8
#: Share of the calibration's candidates that a query needs to be seen like one of the calibration's queries.
ENOUGH: Final = 0.8


@dataclass(frozen=True, kw_only=True)
class GalleryVerdict:
    """Whether the class of a query is in the gallery, by the score of its first hit.

    Args:
        likely: whether the first hit reaches the threshold.
        threshold: the score.
        false_accept_rate: share of the queries of missing classes that may reach it.
        promised: whether that rate holds with 95 % confidence for classes like those of the calibration; else it is
            that of the calibration's own queries, which are too few to promise it.
        gallery_images: size of the gallery that the threshold is for.
        detected: share of the queries whose class is in the gallery that reach the threshold; None where unknown.
        kind: of the calibration.
    """

    likely: bool
    threshold: float
    false_accept_rate: float
    promised: bool
    gallery_images: int
    detected: float | None = None
    kind: str = "class"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "sentence": str(self)}

    def __str__(self) -> str:
        rate = f"{100 * self.false_accept_rate:g} %"
        share = f"at most {rate}" if self.promised else f"about {rate} (estimated, too few classes to promise it)"
        missing = f"{share} of the queries whose {self.kind} is missing from {self.gallery_images:,} images"
        if self.likely:
            return f"Probably in the gallery: the first hit reaches {self.threshold:.3f}, which {missing} would reach."
        below = f"the first hit is below {self.threshold:.3f}, which"
        if self.detected is None:
            return f"Not recognised in the gallery: {below} {missing} would reach."
        there = f"{100 * self.detected:.0f} % of those whose {self.kind} is there"
        if self.detected >= _SURE:
            return f"Probably not in the gallery: {below} {missing} would reach, and {there}."
        return f"Perhaps not in the gallery: {below} {missing} would reach, but also only {there}."


@dataclass(frozen=True)
class JudgedHits:
    """The judgement of the hits of one query.

    Args:
        probabilities: P(same class) of each candidate, in the order of their scores.
        gallery: whether the query is in the gallery; None where nothing can be said.
        notices: what has to be said of the numbers, one line each.
    """

    probabilities: tuple[float, ...] = ()
    gallery: GalleryVerdict | None = None
    notices: tuple[str, ...] = ()


def judge_hits(
    calibrator: Calibrator,
    scores: Sequence[float],
    *,
    depth: int,
    gallery_images: int,
    false_accept_rate: float = FALSE_ACCEPT_RATE,
) -> JudgedHits:
    """Judge the re-ranked candidates of one query.

    Args:
        calibrator: of the embedder and matcher that gave the scores.
        scores: of all K re-ranked candidates, best first.
        depth: how many were asked for; where it is that of the calibration, and about as many were found as the
            calibration saw for a query, each hit is seen among the others of its query.
        gallery_images: images that were searched.
        false_accept_rate: share of the queries of missing classes that may be taken to be there, in (0, 1).

    Raises:
        ValueError: the rate is not inside (0, 1).
    """
    if not 0 < false_accept_rate < 1:
        raise ValueError(f"false_accept_rate: need a fraction in (0, 1), got {false_accept_rate}; 0.01 is 1 %")
    if not scores:
        return JudgedHits()
    values, notices = np.array(scores, dtype=np.float64), []
    seen = min(calibrator.depth, int(calibrator.gallery_images))
    if depth == calibrator.depth and len(scores) >= ENOUGH * seen:
        found = calibrator.hit_probability(values)
    else:
        found = calibrator.probability(values)
        notices.append(
            f"Calibrated on the {seen} nearest images of each query, got {len(scores)}: each probability "
            "is that of its score alone, which is less exact."
        )
    verdict = _verdict(calibrator, float(values[0]), gallery_images, false_accept_rate)
    if verdict is None:
        notices.append(
            f"Whether the query is in the gallery cannot be said: the calibration has seen too few queries for a rate "
            f"of {100 * false_accept_rate:g} % among {gallery_images:,} images."
        )
    return JudgedHits(tuple(found.tolist()), verdict, tuple(notices))


def _verdict(calibrator: Calibrator, best: float, images: int, rate: float) -> GalleryVerdict | None:
    """None where the calibration's queries say nothing about so small a rate in so large a gallery."""
    promised = calibrator.rate_in_own_gallery(rate, images) >= calibrator.not_in_gallery.smallest_rate
    if not promised and calibrator.rate_in_own_gallery(rate, images) * calibrator.not_in_gallery.count < 1:
        return None
    threshold = calibrator.not_in_gallery_threshold(rate, gallery_images=images, promised=promised)
    return GalleryVerdict(
        likely=best >= threshold,
        threshold=threshold,
        false_accept_rate=rate,
        promised=promised,
        gallery_images=images,
        detected=calibrator.detected(threshold),
        kind=calibrator.kind,
    )
