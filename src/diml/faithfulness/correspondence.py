"""Correspondence: of one photo under a known warp, how much of the transported mass lands where it belongs.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diml.explain.sharpening import sharpened
from diml.faithfulness.warps import Truth
from diml.matching import Match

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Landing:
    """Where the mass of the regions that have a true counterpart goes, as shares of their mass.

    A region counts in proportion to the mass that it sends, but for `regions`.

    Args:
        mass: on the true cell.
        near: on the true cell or one that touches it.
        strongest: of regions whose strongest match is the true cell.
        regions: the share of regions, each counted once, whose strongest match is the true cell.
    """

    mass: float
    near: float
    strongest: float
    regions: float

    def to_list(self) -> list[float]:
        """The numbers in the order of `LANDING`."""
        return [getattr(self, name) for name in LANDING]


LANDING = tuple(field.name for field in fields(Landing))


def landing(plan: Tensor, weight_q: Tensor, truth: Truth) -> Landing | None:
    """Where the mass of one plan lands.

    Args:
        plan: (Rq, Rg) mass, or anything in proportion to it within each row.
        weight_q: (Rq,) mass of the query's regions.
        truth: their true counterparts; regions whose counterpart is outside of the gallery image are left out.

    Returns:
        Landing; None where no region with any mass has a counterpart.
    """
    rows = torch.from_numpy(truth.inside)
    return landing_of_rows(
        plan[rows], weight_q[rows], torch.from_numpy(truth.cell)[rows], torch.from_numpy(truth.near)[rows]
    )


def landing_of_rows(plan: Tensor, weight: Tensor, true: Tensor, near: Tensor) -> Landing | None:
    """`Landing` of some regions with known counterparts.

    Args:
        plan: (n, Rg) where each sends its mass, in any proportion.
        weight: (n,) how much each counts.
        true: (n,) int64, the true cell of each.
        near: (n, Rg) bool, the true cell and those that touch it.

    Returns:
        Landing; None where the weights are all zero, or n is 0.
    """
    counted = weight.cpu() > 0
    if not counted.any():
        return None
    share, weight = (part.double().cpu()[counted] for part in (plan, weight))
    true, near = true[counted], near[counted]
    share = share / share.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    weight = weight / weight.sum()
    best = share == share.amax(dim=1, keepdim=True)  # ties share the honour
    on_true, right = (part.gather(1, true.unsqueeze(1)).squeeze(1) for part in (share, best.double()))
    right = right / best.sum(dim=1)
    return Landing(
        mass=float(weight @ on_true),
        near=float(weight @ (share * near).sum(dim=1)),
        strongest=float(weight @ right),
        regions=float(right.mean()),
    )


def ceiling(weight_q: Tensor, weight_g: Tensor, truth: Truth) -> float:
    """The most mass that any plan with these weights can put on the true cells, as a share of what could be there.

    A gallery region takes no more than its own weight: sum over j of min(weight_g[j], what belongs there). Every such
    filling can be completed to a plan, as both sides sum to 1.
    """
    inside = torch.from_numpy(truth.inside)
    weight = torch.where(inside, weight_q.double().cpu(), 0)
    if not weight.sum() > 0:
        return 0.0
    belongs = torch.zeros(len(weight_g), dtype=torch.float64).index_add_(0, torch.from_numpy(truth.cell), weight)
    return float(torch.minimum(belongs, weight_g.double().cpu()).sum() / weight.sum())


def overlap_plan(truth: Truth) -> Tensor:
    """(Rq, Rg) how a plan that knows the warp exactly would divide each region: bilinear between cell centres."""
    rows, columns = truth.grid
    shares = []
    for count, place in ((rows, truth.place[:, 1]), (columns, truth.place[:, 0])):
        at = np.clip(place * count - 0.5, 0, count - 1)
        shares.append(np.clip(1 - np.abs(at[:, None] - np.arange(count)), 0, None))
    return torch.from_numpy((shares[0][:, :, None] * shares[1][:, None, :]).reshape(len(truth.cell), -1))


def rival_plans(cosine: Tensor) -> dict[str, Tensor]:
    """(Rq, Rg) plans that the transport is held against, by name; rows are in proportion to mass.

    - argmax: each region sends all to the region that it resembles most;
    - identity: to the region at its own place (where both sides have as many);
    - uniform: evenly.
    """
    rows, columns = cosine.shape
    plans = {"argmax": torch.nn.functional.one_hot(cosine.argmax(dim=1), columns).double()}
    if rows == columns:
        plans["identity"] = torch.eye(rows, dtype=torch.float64)
    return plans | {"uniform": torch.ones(rows, columns, dtype=torch.float64)}


def landings(match: Match, truths: Sequence[Truth], sharpen: float = 1.0) -> dict[str, Floats]:
    """Method -> (B', 4) numbers of `LANDING` of all pairs that have a counterpart; "ceiling" has its `mass` only.

    Args:
        match: B pairs, query and gallery windows of one photo.
        truths: B, the true counterparts.
        sharpen: factor of the method "sharpened", see `diml.explain.sharpened`.
    """
    found: dict[str, list[list[float]]] = {}
    shown = sharpened(match, sharpen).plan
    for pair, truth in enumerate(truths):
        weights = (match.weight_q[pair], match.weight_g[pair])
        rivals = rival_plans(match.cosine[pair]) | {"overlap": overlap_plan(truth)}
        plans = {"plan": match.plan[pair], "sharpened": shown[pair], **rivals}
        for name, plan in plans.items():
            landed = landing(plan, weights[0], truth)
            if landed is not None:
                found.setdefault(name, []).append(landed.to_list())
        if truth.inside.any():
            found.setdefault("ceiling", []).append([ceiling(*weights, truth), np.nan, np.nan, np.nan])
    return {name: np.array(rows) for name, rows in found.items()}
