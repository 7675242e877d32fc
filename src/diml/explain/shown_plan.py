"""The plan that an explanation shows: the exact one, whichever plan the pair was ranked by.

An entropic plan spreads the mass of every region over all that resemble its counterpart; the exact plan of the same
cosines and masses has at most Rq + Rg - 1 entries. Both score nearly the same; an `Explanation` says which is shown.
MaxSim has a single plan, at most Rq + Rg entries without ties, which is always shown; so have the votes of a learned
matcher.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from diml.explain.explanation import Explanation, Plan
from diml.matching import Match
from diml.matching.transport import TransportPlan, exact_transport, sinkhorn


@torch.no_grad()
def shown_plan(match: Match, pair: int = 0, plan: Plan = "exact") -> Explanation:
    """One pair with the plan that is to be shown.

    Args:
        match: B pairs.
        pair: which of them, -B..B-1.
        plan: "exact", the exact plan of the same cosines and masses, with its dual potentials; "scored", the plan of
            the pair's own matcher, by which pairs are ranked. Both are the same with MaxSim. With share "auto" the
            exact plan moves more mass than the entropic one, and the scores differ more.

    Returns:
        One pair. Where the plan is another than the one that ranks, `scored` holds the structural score of that one.

    Raises:
        IndexError: there is no such pair.
        ValueError: there is no such plan.

    Example:
        >>> shown_plan(diml.match("a.jpg", "b.jpg")).ledger().top(3)  # doctest: +SKIP
    """
    if plan not in ("exact", "scored"):
        raise ValueError(f"plan: need 'exact' or 'scored', got {plan!r}")
    one = Explanation.of(match, pair=pair)
    if one.plan_kind in ("MaxSim", "votes"):
        return one
    wanted = "exact" if plan == "exact" or one.matcher.epsilon == 0 else "entropic"
    if wanted == one.plan_kind:
        return one
    solved = _solved(one, exact=wanted == "exact")
    names = [field.name for field in dataclasses.fields(TransportPlan)]
    if wanted == "exact":  # how far the plan that ranks has converged is still to be said
        names = [name for name in names if name not in ("converged", "marginal_error", "iterations")]
    changed: dict[str, Any] = {name: getattr(solved, name) for name in names}
    structural = (solved.plan * one.cosine).sum(dim=(1, 2))
    scored = one.structural.detach() if wanted == "exact" else None
    return dataclasses.replace(one, **changed, structural=structural, scored=scored)


def _solved(one: Explanation, exact: bool) -> TransportPlan:
    """The exact or the entropic plan of the same cosines and masses."""
    problem = 1 - one.cosine, one.weight_q, one.weight_g
    return exact_transport(*problem, share=one.matcher.share) if exact else sinkhorn(*problem, **one.matcher.solver)
