"""A sharpened plan for display, which is always labelled as other than the plan that scored.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import torch

from diml.explain.explanation import Explanation
from diml.matching import Match

AnyMatch = TypeVar("AnyMatch", bound=Match)


def check_sharpening(factor: float) -> None:
    """Raise ValueError where a factor of `sharpened` is less than 1 or not finite."""
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"sharpen: need a finite number of at least 1, got {factor}; 1 shows the plan that scored")


def sharpened(match: AnyMatch, factor: float) -> AnyMatch:
    """The same pairs with a plan that is concentrated on the strongest matches, for display only.

    The entropy of the plan spreads the mass of a region over all regions that resemble its counterpart. Within each
    row of the plan, entries are raised to a power and scaled so that the region sends the same mass as before: the
    order of its matches stays, the share of the strongest grows. Columns no longer receive their weights, and the
    structural score, again the sum of all contributions, is that of the plan shown. An `Explanation` keeps the score
    that it had and states it in figures and pages.

    Args:
        match: B pairs.
        factor: the power, at least 1; 1 leaves the plan unchanged, in the limit a region sends all its mass to its
            strongest match.

    Returns:
        A match of the same type, B pairs; with factor 1 the match itself.

    Raises:
        ValueError: `factor` is less than 1 or not finite.

    Example:
        >>> sharpened(diml.match("a.jpg", "b.jpg"), 8).draw()  # doctest: +SKIP
    """
    check_sharpening(factor)
    if factor == 1:
        return match
    mass = match.plan.double()
    powers = (mass / mass.amax(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)) ** factor
    rows = powers.sum(dim=2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    plan = (powers / rows * mass.sum(dim=2, keepdim=True)).to(match.plan)
    changed: dict[str, Any] = {"plan": plan, "structural": (plan * match.cosine).sum(dim=(1, 2))}
    if isinstance(match, Explanation):
        before = match.structural if match.scored is None else match.scored
        changed |= {"scored": before, "sharpen": factor * match.sharpen}
    return dataclasses.replace(match, **changed)
