"""The score of one pair as a sum over pairs of regions, and the difference of two such sums.

Legend: Rq and Rg regions of the query and of the gallery image.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from diml.matching.cell_names import cell_name
from diml.matching.parts import Parts, find_parts
from diml.matching.regions import NOT_COMPUTED

Number = TypeVar("Number", float, Tensor)


def combined(pooled: Number, structural: Number, structural_weight: float) -> Number:
    """The score: pooled + structural_weight * structural, and the structural part alone where the weight is infinite.

    Source: Zhao et al., ICCV 2021, section 3.4 (multi-scale matching, weight 1).
    """
    return structural if math.isinf(structural_weight) else pooled + structural_weight * structural


def plain_weight(structural_weight: float) -> float | str:
    """A structural weight as JSON and YAML can hold it: a number, or "inf"."""
    return "inf" if math.isinf(structural_weight) else structural_weight


@dataclass(frozen=True)
class Flow:
    """One term: `mass` (fraction of 1) transported from `region_q` to `region_g` (row-major indices) at their `cosine`.

    `contribution` = mass * cosine is the part of the structural score that this pair of regions accounts for.
    """

    region_q: int
    region_g: int
    mass: float
    cosine: float
    contribution: float


@dataclass(frozen=True, eq=False, repr=False)
class Ledger:
    """Contributions of all pairs of regions of one pair of images, which sum to its structural score.

    Args:
        plan, cosine: (Rq, Rg) transported mass and cosine of each pair of regions.
        pooled: cosine of the pooled vectors.
        grid_q, grid_g: (rows, columns) of the regions of either side, or None.
        structural_weight: weight of the structural score in `score` (see `Matcher`).
        pooled_parts: (Rq, Rg) float64, the pooled cosine as a sum over pairs of regions, or None (see `Match`).
        undivided: why there are no `pooled_parts`; empty where there are.
        within_q, within_g: (Rq, Rq) and (Rg, Rg) cosines of the regions of one image with each other, or None.
        unmatched_q, unmatched_g: (Rq,) and (Rg,) mass that is not transported; None where all of it is.

    Source: Zhao et al., ICCV 2021, section 3.3.
    """

    plan: Tensor
    cosine: Tensor
    pooled: float
    grid_q: tuple[int, int] | None = None
    grid_g: tuple[int, int] | None = None
    structural_weight: float = 1.0
    pooled_parts: Tensor | None = None
    undivided: str = NOT_COMPUTED
    within_q: Tensor | None = None
    within_g: Tensor | None = None
    unmatched_q: Tensor | None = None
    unmatched_g: Tensor | None = None

    @property
    def contributions(self) -> Tensor:
        """(Rq, Rg) float64: plan * cosine. Row and column sums are the totals of the regions of either side."""
        return self.plan.double() * self.cosine.double()

    @property
    def total_q(self) -> Tensor:
        """(Rq,) float64: total contribution of each region of the query."""
        return self.contributions.sum(dim=1)

    @property
    def total_g(self) -> Tensor:
        """(Rg,) float64: total contribution of each region of the gallery image."""
        return self.contributions.sum(dim=0)

    @property
    def structural(self) -> float:
        """Sum of all contributions."""
        return float(self.contributions.sum())

    @property
    def score(self) -> float:
        """pooled + structural_weight * structural."""
        return combined(self.pooled, self.structural, self.structural_weight)

    @property
    def has_whole(self) -> bool:
        """Whether the whole score is a sum over pairs of regions; if not, the pooled cosine is a term of its own."""
        return self.pooled_parts is not None or math.isinf(self.structural_weight)

    @property
    def whole(self) -> Tensor:
        """(Rq, Rg) float64: the whole score as one sum, pooled_parts + structural_weight * contributions.

        It sums to `score` up to the rounding of the vectors (below 1e-6). Row and column sums are the totals of the
        regions of either side. Parts of the pooled cosine can be negative, as the cells of two images partly cancel.

        Raises:
            ValueError: the pooled cosine is not divided among pairs of regions (`undivided` says why).
        """
        if math.isinf(self.structural_weight):
            return self.contributions
        if self.pooled_parts is None:
            raise ValueError(f"whole: need pooled_parts, got none: {self.undivided}")
        return combined(self.pooled_parts.double(), self.contributions, self.structural_weight)

    def top(self, n: int) -> list[Flow]:
        """The n largest contributions (or all, if there are fewer), largest first, ties in row-major order."""
        if n < 0:
            raise ValueError(f"n: need 0 or more, got {n}")
        order = torch.argsort(self.contributions.flatten(), descending=True, stable=True)[:n]
        values = torch.stack([part.flatten()[order].double() for part in (self.plan, self.cosine, self.contributions)])
        places = [divmod(index, self.plan.shape[1]) for index in order.tolist()]
        return [Flow(*place, *value) for place, value in zip(places, values.T.tolist(), strict=True)]

    def name_q(self, region: int) -> str:
        """The name of a region of the query, as figures and pages have it: `A1` is the top left.

        Example:
            >>> flow = ledger.top(1)[0]  # doctest: +SKIP
            >>> ledger.name_q(flow.region_q), ledger.name_g(flow.region_g)  # doctest: +SKIP
            ('C2', 'B3')
        """
        return cell_name(region, self.grid_q)

    def name_g(self, region: int) -> str:
        """The name of a region of the gallery image, as figures and pages have it: `A1` is the top left."""
        return cell_name(region, self.grid_g)

    def parts(self, n: int | None = None) -> Parts:
        """The score as a sum of a few rows: groups of regions of both images that match.

        The regions of both images are grouped so that the exact plan between the ledger's masses moves as much as
        possible inside the groups, while each group is similar, near and in one piece in either image. Where single
        pieces cannot hold 90 % of the structural score, some regions join parts elsewhere in their image, which
        `Part.connected_q` and `Part.connected_g` tell. The result is deterministic, and exchanging the images exchanges
        its sides. Milliseconds at 7 x 7 regions.

        Args:
            n: number of parts; there are fewer where regions run out. None chooses 3 to 6: of the numbers whose parts
                hold 90 % of the structural score in one piece each, that after which the eigenvalues of the graph drop
                most; without any, that whose parts hold most.

        Returns:
            Parts: rows, largest value first, that sum to `score` with what is between them; values are of the whole
            score where it is divided (`has_whole`), else of the structural score times its weight. Regions without
            mass, or with most of it unmatched, are in no part.

        Raises:
            TypeError, ValueError: n is no integer, or below 1.

        Example:
            >>> print(match.ledger().parts(4))  # doctest: +SKIP
        """
        return find_parts(self, n)

    def contrast(self, other: Ledger) -> Contrast:
        """Why this pair scores above (or below) another pair of the same query.

        The contrast has the difference of the whole scores per region where both ledgers have `whole`.

        Raises:
            ValueError: the queries' regions or the structural weights of the two ledgers differ.
        """
        ours, theirs = ((len(side.plan), side.grid_q) for side in (self, other))
        if ours != theirs:
            raise ValueError(f"other: need a pair of the same query, got (Rq, grid_q) {theirs} against {ours}")
        if self.structural_weight != other.structural_weight:
            got = f"{other.structural_weight} against {self.structural_weight}"
            raise ValueError(f"other: need the same structural_weight, got {got}; compare both with one Matcher")
        regions, pooled = self.total_q - other.total_q, self.pooled - other.pooled
        both = self.has_whole and other.has_whole
        whole = self.whole.sum(dim=1) - other.whole.sum(dim=1) if both else None
        return Contrast(regions, pooled, self.grid_q, self.structural_weight, whole)

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """Plain values: scores, grids, the `top` largest contributions, totals of both sides, plan and cosine.

        Also `pooled_parts` {total_q, total_g}, totals of the pooled cosine of both sides; or `undivided`, the reason
        why it cannot be divided. Neither where shares were not computed. Where mass is not matched, `unmatched` {mass,
        contribution (0), query, gallery}: the line that completes the sum, and the mass of the regions of either side.
        """
        plain = {name: getattr(self, name) for name in ("score", "pooled", "structural", "grid_q", "grid_g")}
        weight = {"structural_weight": plain_weight(self.structural_weight)}
        tensors = {name: getattr(self, name).tolist() for name in ("total_q", "total_g", "plan", "cosine")}
        divided: dict[str, Any] = {} if self.undivided == NOT_COMPUTED else {"undivided": self.undivided}
        if self.pooled_parts is not None:
            sums = {"total_q": self.pooled_parts.sum(dim=1), "total_g": self.pooled_parts.sum(dim=0)}
            divided = {"pooled_parts": {name: total.tolist() for name, total in sums.items()}}
        left: dict[str, Any] = {}
        if self.unmatched_q is not None and self.unmatched_g is not None:
            sides = {"query": self.unmatched_q.tolist(), "gallery": self.unmatched_g.tolist()}
            left = {"unmatched": {"mass": self.unmatched, "contribution": 0.0} | sides}
        return plain | weight | {"top": [asdict(flow) for flow in self.top(top)]} | tensors | left | divided

    @property
    def unmatched(self) -> float | None:
        """Share of the mass that is not matched, the mean of both sides; it contributes 0. None where all of it is."""
        if self.unmatched_q is None or self.unmatched_g is None:
            return None
        return float(self.unmatched_q.double().sum() + self.unmatched_g.double().sum()) / 2

    def to_json(self, top: int = 10) -> str:
        """`to_dict` as JSON text; fractions, not percent."""
        return json.dumps(self.to_dict(top), indent=1)

    def __repr__(self) -> str:
        rows, columns = self.plan.shape
        parts = f"score {self.score:.4f}, pooled {self.pooled:.4f}, structural {self.structural:.4f}"
        return f"Ledger({rows} x {columns} pairs of regions, {parts})"

    def _repr_html_(self) -> str:
        """The largest contributions as a table, for notebooks."""
        flows = self.top(8)
        rest = self.structural - sum(flow.contribution for flow in flows)
        head = "".join(
            f"<th>{name}</th>" for name in ("query region", "gallery region", "mass", "cosine", "contribution")
        )
        rows = "".join(
            f"<tr><td>{self.name_q(flow.region_q)}</td><td>{self.name_g(flow.region_g)}</td><td>{flow.mass:.4f}</td>"
            f"<td>{flow.cosine:.3f}</td><td>{flow.contribution:.4f}</td></tr>"
            for flow in flows
        )
        others = f"<tr><td colspan=4>{self.plan.numel() - len(flows)} others</td><td>{rest:.4f}</td></tr>"
        left = "" if self.unmatched is None else f"<td>{self.unmatched:.4f}</td><td></td><td>0.0000</td>"
        others += f"<tr><td colspan=2>unmatched</td>{left}</tr>" if left else ""
        total = f"<tr><td colspan=4>structural</td><td>{self.structural:.4f}</td></tr>"
        return f"<table><tr>{head}</tr>{rows}{others}{total}</table>"


@dataclass(frozen=True, eq=False, repr=False)
class Contrast:
    """Score of pair A minus score of pair B of the same query: `pooled` + structural_weight * sum of `regions`.

    Args:
        regions: (Rq,) float64: contribution of each region of the query with A minus its contribution with B.
        pooled: pooled cosine with A minus that with B.
        grid_q: (rows, columns) of the query's regions, or None.
        structural_weight: as of both ledgers.
        whole: (Rq,) float64: whole score of each region of the query with A minus that with B; they sum to `score`.
            None where the pooled cosine of A or B is not divided among pairs of regions.
    """

    regions: Tensor
    pooled: float
    grid_q: tuple[int, int] | None = None
    structural_weight: float = 1.0
    whole: Tensor | None = None

    @property
    def structural(self) -> float:
        """Difference of the structural scores: sum over the regions."""
        return float(self.regions.sum())

    @property
    def score(self) -> float:
        """Difference of the scores; positive where A is above B."""
        return combined(self.pooled, self.structural, self.structural_weight)

    def top(self, n: int) -> list[int]:
        """The n regions (or all) with the largest differences of either sign, ties in row-major order.

        By the differences of the whole scores where they are known, else of the structural scores.
        """
        if n < 0:
            raise ValueError(f"n: need 0 or more, got {n}")
        differences = (self.regions if self.whole is None else self.whole).abs()
        return [int(region) for region in torch.argsort(differences, descending=True, stable=True)[:n]]

    def to_dict(self) -> dict[str, object]:
        """Plain values: score, pooled, structural, structural_weight, grid_q, regions; whole where it is known."""
        numbers = {name: getattr(self, name) for name in ("score", "pooled", "structural", "grid_q")}
        whole = {} if self.whole is None else {"whole": self.whole.tolist()}
        weight = {"structural_weight": plain_weight(self.structural_weight)}
        return {**numbers, **weight, "regions": self.regions.tolist(), **whole}

    def __repr__(self) -> str:
        return f"Contrast({len(self.regions)} regions, score {self.score:+.4f}, pooled {self.pooled:+.4f})"
