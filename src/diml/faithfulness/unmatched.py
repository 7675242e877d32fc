"""Whether mass that stays unmatched points at what has no counterpart: regions with known occlusions drawn over them.

One image of a pair is occluded. Its regions of which more than half is drawn over have no counterpart in the other
image; those of which less than a tenth is drawn over may have one; the rest is left out. The area under the ROC curve
is the share of pairs of one region of either kind in which more of the mass of the occluded one stays unmatched.

Legend: B pairs, R regions of the occluded image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diml.data import Preprocess
from diml.faithfulness.occlusion import occlude
from diml.matching import Match, Matcher, Regions

Floats = NDArray[np.float64]

#: Regions are occluded above, and free below, these fractions of their area.
OCCLUDED, FREE = 0.5, 0.1

#: What orders the regions: the unmatched fraction of their mass with the plan that scores, and with the exact plan;
#: and what needs no plan.
METHODS: Final = ("unmatched", "exact", "cosine", "weights")


def unmatched_fraction(unmatched: Tensor, weight: Tensor) -> Tensor:
    """(B, R) fraction of the mass of each region that stays unmatched; 1 where a region has none."""
    return (unmatched / weight).where(weight > 0, 1).clamp(0, 1)


def region_scores(match: Match, exact: Match | None = None) -> dict[str, Floats]:
    """What orders the regions of the query, the least matched ones highest.

    Args:
        match: of B pairs with a share below 1, or "auto".
        exact: the same pairs with the exact plan; None where that of `match` is exact.

    Returns:
        Name in `METHODS` -> (B, R): the unmatched fraction; 1 - the largest cosine; minus the weight.

    Raises:
        ValueError: all mass is transported.
    """
    found = {"unmatched": match} if exact is None else {"unmatched": match, "exact": exact}
    scores = {}
    for name, plan in found.items():
        if plan.unmatched_q is None:
            raise ValueError("match: need a share below 1 or 'auto', got 1, which leaves nothing unmatched")
        scores[name] = unmatched_fraction(plan.unmatched_q, plan.weight_q)
    scores["cosine"], scores["weights"] = 1 - match.cosine.detach().amax(dim=2), -match.weight_q
    return {name: values.double().cpu().numpy() for name, values in scores.items()}


def area_under_roc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Share of pairs of a positive and a negative in which the positive scores higher; ties count half.

    NaN where one kind is missing.

    Args:
        scores: (n,) finite numbers.
        positive: (n,) the kind of each.
    """
    ordered, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    if positive.all() or not positive.any():
        return float("nan")
    positives = np.bincount(place, weights=positive, minlength=len(ordered))
    negatives = count - positives
    below = np.cumsum(negatives) - negatives
    return float(positives @ (below + negatives / 2) / (positives.sum() * negatives.sum()))


def occlusion_areas(scores: Floats, covered: Floats) -> Floats:
    """(B,) area under the ROC curve of the regions of each image; NaN without regions of both kinds.

    Args:
        scores: (B, R), high for what has no counterpart.
        covered: (B, R) fraction of each region that was drawn over.
    """
    clear = (covered > OCCLUDED) | (covered < FREE)
    each = zip(scores, covered, clear, strict=True)
    return np.array([area_under_roc(values[use], part[use] > OCCLUDED) for values, part, use in each])


def partial_matchers(matcher: Matcher) -> tuple[Matcher, Matcher | None]:
    """The matcher whose unmatched mass is measured, and that of the exact plan, or None where the first is exact.

    A share of 1 becomes "auto", and MaxSim, which leaves nothing unmatched, becomes transport. A learned matcher has
    dustbins of its own.
    """
    if matcher.learned:
        return matcher, None
    partial = replace(matcher, matching="transport", share="auto") if matcher.share == 1 else matcher
    return partial, replace(partial, epsilon=0.0) if partial.epsilon else None


def measure_unmatched(
    embed: Callable[[Sequence[Image.Image]], Regions],
    preprocess: Preprocess,
    images_q: Sequence[Image.Image],
    gallery: Regions,
    matcher: Matcher,
    kinds: Sequence[str],
    generators: Sequence[np.random.Generator],
    others: Sequence[Image.Image] = (),
) -> dict[tuple[str, str], Floats]:
    """Occlude the queries of B pairs and measure which order of their regions finds what was drawn over.

    Args:
        embed: from views to regions.
        preprocess: of the embedder; its resizing and cropping decide what a region is.
        images_q: B upright queries as loaded.
        gallery: B gallery images.
        matcher: settings of the method; a share of 1 becomes "auto".
        kinds: of `occlusion.OCCLUSIONS`.
        generators: B, of what is drawn.
        others: for "clutter", an image of another class for each pair.

    Returns:
        (kind, method of `METHODS`) -> (B,) area under the ROC curve; NaN for queries without regions of both kinds.
        With an exact matcher there is no method "exact", as "unmatched" is.

    Raises:
        ValueError: an unknown kind, "clutter" without other images, or regions that form no known grid.
    """
    partial, exact = partial_matchers(matcher)
    clutter: list[list[Image.Image]] = [[other] for other in others] if others else [[] for _ in images_q]
    areas: dict[tuple[str, str], Floats] = {}
    for kind in kinds:
        drawn = [
            occlude(kind, image, generator, other)
            for image, generator, other in zip(images_q, generators, clutter, strict=True)
        ]
        query = embed([preprocess.view(each.image) for each in drawn])
        if query.grid is None:
            raise ValueError("grid: need regions on a known grid, got none; give the embedder one with --grid")
        covered = np.stack([each.regions(preprocess, query.grid) for each in drawn])
        found = partial.match(query, gallery)
        scores = region_scores(found, None if exact is None else exact.match(query, gallery))
        areas |= {(kind, name): occlusion_areas(values, covered) for name, values in scores.items()}
    return areas
