"""Correspondence: share of the transported mass that reaches the true counterparts, for a photo under a known warp.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diml.faithfulness.warps import Truth
from diml.matching import Match

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PlanAccuracy:
    """How much of the mass of the regions with a true counterpart reaches it, as fractions of their mass.

    A region counts in proportion to the mass that it sends, except in `regions`.

    Args:
        mass: fraction on the true cell.
        near: fraction on the true cell or an adjacent one.
        strongest: fraction of the mass in regions whose strongest match is the true cell.
        regions: fraction of the regions, each counted once, whose strongest match is the true cell.
    """

    mass: float
    near: float
    strongest: float
    regions: float

    def to_list(self) -> list[float]:
        """The numbers in the order of `QUANTITIES`."""
        return [getattr(self, name) for name in QUANTITIES]


QUANTITIES = tuple(field.name for field in fields(PlanAccuracy))


def plan_accuracy(plan: Tensor, weight_q: Tensor, truth: Truth) -> PlanAccuracy | None:
    """The accuracy of one plan.

    Args:
        plan: (Rq, Rg) mass, or values proportional to it within each row.
        weight_q: (Rq,) mass of the query's regions.
        truth: their true counterparts; regions whose counterpart is outside the gallery image are left out.

    Returns:
        PlanAccuracy; None where no region with positive mass has a counterpart.
    """
    rows = torch.from_numpy(truth.inside)
    return accuracy_of_rows(
        plan[rows], weight_q[rows], torch.from_numpy(truth.cell)[rows], torch.from_numpy(truth.near)[rows]
    )


def accuracy_of_rows(plan: Tensor, weight: Tensor, true: Tensor, near: Tensor) -> PlanAccuracy | None:
    """`PlanAccuracy` of some regions with known counterparts.

    Args:
        plan: (n, Rg) mass, or values proportional to it within each row.
        weight: (n,) weight of each region.
        true: (n,) int64, the true cell of each.
        near: (n, Rg) bool, the true cell and the adjacent ones.

    Returns:
        PlanAccuracy; None where the weights are all zero, or n is 0.
    """
    counted = weight.cpu() > 0
    if not counted.any():
        return None
    share, weight = (part.double().cpu()[counted] for part in (plan, weight))
    true, near = true[counted], near[counted]
    share = share / share.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    weight = weight / weight.sum()
    best = share == share.amax(dim=1, keepdim=True)  # ties are divided evenly
    on_true, right = (part.gather(1, true.unsqueeze(1)).squeeze(1) for part in (share, best.double()))
    right = right / best.sum(dim=1)
    return PlanAccuracy(
        mass=float(weight @ on_true),
        near=float(weight @ (share * near).sum(dim=1)),
        strongest=float(weight @ right),
        regions=float(right.mean()),
    )


def ceiling(weight_q: Tensor, weight_g: Tensor, truth: Truth) -> float:
    """The largest mass that any plan with these weights can put on the true cells, as a fraction of their mass.

    A gallery region receives at most its own weight: sum over j of min(weight_g[j], mass whose true cell is j). Every
    such partial plan can be completed to a plan, as both sides sum to 1.
    """
    inside = torch.from_numpy(truth.inside)
    weight = torch.where(inside, weight_q.double().cpu(), 0)
    if not weight.sum() > 0:
        return 0.0
    wanted = torch.zeros(len(weight_g), dtype=torch.float64).index_add_(0, torch.from_numpy(truth.cell), weight)
    return float(torch.minimum(wanted, weight_g.double().cpu()).sum() / weight.sum())


def overlap_plan(truth: Truth) -> Tensor:
    """(Rq, Rg) how a plan that knows the warp exactly divides each region: bilinear between cell centres."""
    rows, columns = truth.grid
    shares = []
    for count, place in ((rows, truth.place[:, 1]), (columns, truth.place[:, 0])):
        at = np.clip(place * count - 0.5, 0, count - 1)
        shares.append(np.clip(1 - np.abs(at[:, None] - np.arange(count)), 0, None))
    return torch.from_numpy((shares[0][:, :, None] * shares[1][:, None, :]).reshape(len(truth.cell), -1))


def baseline_plans(cosine: Tensor) -> dict[str, Tensor]:
    """(Rq, Rg) plans to compare the transport plan with, by name; rows are proportional to mass.

    - argmax: each region sends all its mass to the region with the largest cosine;
    - identity: to the region at the same place (where both sides have equally many regions);
    - uniform: evenly.
    """
    rows, columns = cosine.shape
    plans = {"argmax": torch.nn.functional.one_hot(cosine.argmax(dim=1), columns).double()}
    if rows == columns:
        plans["identity"] = torch.eye(rows, dtype=torch.float64)
    return plans | {"uniform": torch.ones(rows, columns, dtype=torch.float64)}


def plan_accuracies(match: Match, exact: Match, truths: Sequence[Truth]) -> dict[str, Floats]:
    """Method -> (B', 4) values of `QUANTITIES` of all pairs with counterparts; "ceiling" has `mass` only.

    Args:
        match: B pairs of two windows of one photo each, with the plan that scores.
        exact: the same pairs with the exact plan.
        truths: B, the true counterparts.
    """
    found: dict[str, list[list[float]]] = {}
    for pair, truth in enumerate(truths):
        weights = (match.weight_q[pair], match.weight_g[pair])
        others = baseline_plans(match.cosine[pair]) | {"overlap": overlap_plan(truth)}
        for name, plan in {"plan": match.plan[pair], "exact": exact.plan[pair], **others}.items():
            accuracy = plan_accuracy(plan, weights[0], truth)
            if accuracy is not None:
                found.setdefault(name, []).append(accuracy.to_list())
        if truth.inside.any():
            found.setdefault("ceiling", []).append([ceiling(*weights, truth), np.nan, np.nan, np.nan])
    return {name: np.array(rows) for name, rows in found.items()}
