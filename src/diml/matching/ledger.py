"""The structural score of one pair, written as the sum it is over Rq x Rg regions of query and gallery image."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diml.matching.contrast import Contrast


@dataclass(frozen=True)
class Flow:
    """One entry: `mass` (share of 1) sent from `region_q` to `region_g` (row-major indices) at their `cosine`.

    `contribution` = mass * cosine is the part of the structural score that this pair of regions accounts for.
    """

    region_q: int
    region_g: int
    mass: float
    cosine: float
    contribution: float


@dataclass(frozen=True, eq=False)
class Ledger:
    """Part-to-part contributions of one pair, which sum to its structural similarity.

    Args:
        plan, cosine: (Rq, Rg) transported mass and cosine of each pair of regions.
        pooled: cosine of the pooled vectors.
        grid_q, grid_g: (rows, columns) of the regions of either side, or None.
    """

    plan: Tensor
    cosine: Tensor
    pooled: float
    grid_q: tuple[int, int] | None = None
    grid_g: tuple[int, int] | None = None

    @property
    def contributions(self) -> Tensor:
        """(Rq, Rg) float64: plan * cosine. Row and column sums are the totals of the regions of either side."""
        return self.plan.double() * self.cosine.double()

    @property
    def total_q(self) -> Tensor:
        """(Rq,) float64: what each region of the query contributes in all."""
        return self.contributions.sum(dim=1)

    @property
    def total_g(self) -> Tensor:
        """(Rg,) float64: what each region of the gallery image contributes in all."""
        return self.contributions.sum(dim=0)

    @property
    def structural(self) -> float:
        """Sum of all contributions."""
        return float(self.contributions.sum())

    @property
    def score(self) -> float:
        """Sum of pooled and structural, the paper's multi-scale similarity."""
        return self.pooled + self.structural

    def top(self, n: int) -> list[Flow]:
        """The n largest contributions (or all there are), largest first, ties in row-major order."""
        if n < 0:
            raise ValueError(f"n: need 0 or more, got {n}")
        order = torch.argsort(self.contributions.flatten(), descending=True, stable=True)[:n]
        values = torch.stack([part.flatten()[order].double() for part in (self.plan, self.cosine, self.contributions)])
        places = [divmod(index, self.plan.shape[1]) for index in order.tolist()]
        return [Flow(*place, *value) for place, value in zip(places, values.T.tolist(), strict=True)]

    def contrast(self, other: Ledger) -> Contrast:
        """Why this pair scores above (or below) another pair of the same query; ValueError where grids differ."""
        ours, theirs = ((len(side.plan), side.grid_q) for side in (self, other))
        if ours != theirs:
            raise ValueError(f"other: need a pair of the same query, got (Rq, grid_q) {theirs} against {ours}")
        return Contrast(self.total_q - other.total_q, self.pooled - other.pooled, self.grid_q)

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """Plain numbers and lists: scores, grids, the `top` largest flows, totals of both sides, plan and cosine."""
        plain = {name: getattr(self, name) for name in ("score", "pooled", "structural", "grid_q", "grid_g")}
        tensors = {name: getattr(self, name).tolist() for name in ("total_q", "total_g", "plan", "cosine")}
        return plain | {"top": [asdict(flow) for flow in self.top(top)]} | tensors

    def to_json(self, top: int = 10) -> str:
        """`to_dict` as JSON text; fractions, not percent."""
        return json.dumps(self.to_dict(top), indent=1)
