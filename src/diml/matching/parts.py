"""Few rows instead of R x R: the regions of both images in a few groups that match, with what each adds to the score.

The regions of both images are the nodes of one graph. Between the images, two regions are joined by the mass that the
exact plan moves from one to the other; within an image, by their similarity and nearness. Groups that cut little of
this graph (normalised cut) are compact in both images and keep almost all of the plan inside.

Legend: Rq and Rg regions of the query and of the gallery image, N = Rq + Rg nodes, n parts.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diml.matching.regrouping import LEAST_GAIN, Grouping, Neighbours, grid_neighbours, pieces
from diml.matching.spectral import spectral_groups
from diml.matching.transport import exact_transport

if TYPE_CHECKING:
    from diml.matching.ledger import Ledger

#: Numbers of parts that are tried when none is given, and the share of the structural score that parts shall hold.
FEWEST, MOST, CARRIED = 3, 6, 0.9

#: Affinity within an image: similarity x nearness exp(-d^2 / (2 SIGMA^2)), d in sevenths of the longer side; its weight
#: against the plan in the objective, and in the graphs whose eigenvectors give the first groups, which are improved.
#: Half or twice of any of these changes little (docs/experiments/parts.md).
SIGMA, WITHIN, STARTS = 1.0, 0.5, (2.0, 1.0)

#: Of a region with more than this share of its mass unmatched, and of one without mass, nothing is matched.
MOSTLY, NO_MASS = 0.5, 1e-12


@dataclass(frozen=True)
class Part:
    """One group of regions of both images.

    Args:
        regions_q, regions_g: its regions (row-major indices, ascending), at least one on either side.
        value: what its pairs of regions add to the score: of the whole score if the ledger has it (`Ledger.whole`),
            else structural_weight * contributions.
        share: value as a fraction of the score; 0 where the score is not positive.
        structural: their part of the structural score.
        structural_share: that as a fraction of the structural score of the pair; 0 where it is not positive.
        mass: transported mass inside the part, as a fraction of 1.
        cosine: mean cosine of what is transported inside the part, weighted by mass; 0 without mass.
        connected_q, connected_g: whether its regions are one piece (4 neighbours); true where the grid is unknown.
    """

    regions_q: tuple[int, ...]
    regions_g: tuple[int, ...]
    value: float
    share: float
    structural: float
    structural_share: float
    mass: float
    cosine: float
    connected_q: bool
    connected_g: bool


@dataclass(frozen=True, eq=False, repr=False)
class Parts:
    """The score of one pair of images as a sum of a few rows: sum of `rows` + `between` + `pooled` = `score`.

    Args:
        rows: the parts, largest value first.
        between: value of all pairs of regions of different parts or of none.
        pooled: the pooled cosine as a row of its own where it is not divided among pairs of regions; else None.
        score: of the pair.
        structural: structural score of the pair, of which the parts carry `structural_share`.
        part_q, part_g: (Rq,) and (Rg,) int64: row of each region, or -1 where it belongs to no part: it has no mass,
            or most of it is unmatched.
    """

    rows: tuple[Part, ...]
    between: float
    pooled: float | None
    score: float
    structural: float
    part_q: Tensor
    part_g: Tensor

    @property
    def share(self) -> float:
        """Share of the score that the parts carry; less than `structural_share` where the pooled cosine is divided.

        The pooled cosine compares all regions of one image with all of the other: most of it is between parts.
        """
        return sum(row.share for row in self.rows)

    @property
    def structural_share(self) -> float:
        """Share of the structural score that the parts carry."""
        return sum(row.structural_share for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: score, share, structural, structural_share, between, pooled, part_q, part_g; parts: `Part`s."""
        names = ("score", "share", "structural", "structural_share", "between", "pooled")
        plain = {name: getattr(self, name) for name in names}
        sides = {name: getattr(self, name).tolist() for name in ("part_q", "part_g")}
        return plain | {"parts": [asdict(row) for row in self.rows]} | sides

    def to_json(self) -> str:
        """`to_dict` as JSON text; fractions, not percent."""
        return json.dumps(self.to_dict(), indent=1)

    def __repr__(self) -> str:
        return f"Parts({len(self)} parts hold {self.structural_share:.0%} of the structural score)"

    def __str__(self) -> str:
        """The rows as a table."""
        table = [("part", "query", "gallery", "mass", "cosine", "value", "share"), *self._cells()]
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table
        )

    def _repr_html_(self) -> str:
        """The rows as a table, for notebooks."""
        head = "".join(f"<th>{name}</th>" for name in ("part", "query", "gallery", "mass", "cosine", "value", "share"))
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._cells()
        )
        return f"<table><tr>{head}</tr>{rows}</table>"

    def _cells(self) -> list[tuple[str, ...]]:
        """The table without its head, last the sum."""
        cells: list[tuple[str, ...]] = [
            (
                str(number),
                _counted(row.regions_q, row.connected_q),
                _counted(row.regions_g, row.connected_g),
                f"{row.mass:.3f}",
                f"{row.cosine:.3f}",
                f"{row.value:.4f}",
                f"{row.share:.0%}",
            )
            for number, row in enumerate(self.rows, start=1)
        ]
        others = [("between parts", self.between)] + ([] if self.pooled is None else [("pooled", self.pooled)])
        for name, value in [*others, ("score", self.score)]:
            cells.append((name, "", "", "", "", f"{value:.4f}", f"{_share(value, self.score):.0%}"))
        return cells


def find_parts(ledger: Ledger, n: int | None = None) -> Parts:
    """Group the regions of both images of a ledger: see `Ledger.parts`."""
    if n is not None and (isinstance(n, bool) or not isinstance(n, int)):
        raise TypeError(f"n: need an integer or None, got {n!r} ({type(n).__name__})")
    if n is not None and n < 1:
        raise ValueError(f"n: need at least 1 part, got {n}; None chooses {FEWEST} to {MOST}")
    problem = _Problem.of(ledger)
    if not problem.across.numel():
        return parts_of(ledger, *(torch.full((count,), -1, dtype=torch.int64) for count in ledger.plan.shape))
    return parts_of(ledger, *problem.spread(*_grouped(problem, n)))


@dataclass(frozen=True, eq=False)
class _Problem:
    """What is grouped: the regions with mass, most of which is transported.

    Args:
        across: (rows, columns) exact plan between them.
        cosine: (rows, columns) of their cosines.
        within: affinities (rows, rows) and (columns, columns) of the regions of one image.
        near: neighbours on the grid of all regions, the first image first.
        kept: which regions of either image these are.
        exchanged: whether the gallery image comes first.
    """

    across: Tensor
    cosine: Tensor
    within: tuple[Tensor, Tensor]
    near: Neighbours
    kept: tuple[Tensor, Tensor]
    exchanged: bool

    @classmethod
    def of(cls, ledger: Ledger) -> _Problem:
        plan, cosine = (side.detach().cpu().double() for side in (ledger.plan, ledger.cosine))
        sides = [
            (plan.sum(dim=1), ledger.unmatched_q, ledger.within_q, ledger.grid_q),
            (plan.sum(dim=0), ledger.unmatched_g, ledger.within_g, ledger.grid_g),
        ]
        # The order of the images is decided by the numbers, so that exchanging them only exchanges the result.
        exchanged = (len(cosine), sides[0][0].tolist(), cosine.tolist()) > (
            len(cosine.T),
            sides[1][0].tolist(),
            cosine.T.tolist(),
        )
        if exchanged:
            plan, cosine = plan.T, cosine.T
            sides.reverse()
        kept = [_matched(mass, unmatched) for mass, unmatched, _, _ in sides]
        cosine = cosine[kept[0]][:, kept[1]]
        across = _exact(cosine, plan[kept[0]][:, kept[1]])
        within = [
            _within(similarity, grid, one, across.sum(dim=1 - side))
            for side, ((_, _, similarity, grid), one) in enumerate(zip(sides, kept, strict=True))
        ]
        near: list[list[int] | None] = []
        for (_, _, _, grid), one in zip(sides, kept, strict=True):
            before, regions = len(near), one.nonzero().squeeze(1).tolist()
            if grid is None:
                near += [None] * len(regions)
            else:
                near += [[before + other for other in found] for found in grid_neighbours(grid, regions)]
        return cls(across, cosine, (within[0], within[1]), near, (kept[0], kept[1]), exchanged)

    def affinity(self, weight: float) -> Tensor:
        """(N, N) affinity of all regions, within the images with this weight."""
        first, second = (weight * side for side in self.within)
        return torch.cat([torch.cat([first, self.across], dim=1), torch.cat([self.across.T, second], dim=1)])

    def spread(self, *groups: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(Rq,) and (Rg,) group of every region, from those of the kept ones; -1 for the others."""
        sides = [torch.full((len(kept),), -1, dtype=torch.int64) for kept in self.kept]
        for side, kept, found in zip(sides, self.kept, groups, strict=True):
            side[kept] = torch.tensor(found, dtype=torch.int64)
        return (sides[1], sides[0]) if self.exchanged else (sides[0], sides[1])


def _grouped(problem: _Problem, n: int | None) -> tuple[list[int], list[int]]:
    """Groups of the kept regions of both images, in the order of the problem."""
    gain, rows = problem.across * problem.cosine, len(problem.across)
    enough = CARRIED * float(gain.sum())
    found = _improved(problem, [n] if n is not None else range(FEWEST, MOST + 1))
    held = [made.inside(gain) for made, _ in found]
    if max(held) >= enough:
        chosen = max((place for place, value in enumerate(held) if value >= enough), key=lambda place: found[place][1])
    else:
        chosen = held.index(max(held))
    grouping = found[chosen][0]
    grouping.reach(gain, enough)
    return grouping.groups[:rows], grouping.groups[rows:]


def _improved(problem: _Problem, counts: Sequence[int]) -> list[tuple[Grouping, float]]:
    """For each number of groups the best groups in one piece each, and the gap of the eigenvalues after it."""
    affinity, rows = problem.affinity(WITHIN), len(problem.across)
    mass = [*problem.across.sum(dim=1).tolist(), *problem.across.sum(dim=0).tolist()]
    best: list[tuple[Grouping, float]] = []
    for weight in STARTS:
        for place, start in enumerate(spectral_groups(problem.affinity(weight), counts)):
            made = Grouping(affinity, problem.near, rows, start.groups)
            made.connect(mass)
            made.refine()
            if place == len(best):
                best.append((made, start.gap))
            elif made.association > best[place][0].association + LEAST_GAIN:
                best[place] = made, best[place][1]
    return best


def _matched(mass: Tensor, unmatched: Tensor | None) -> Tensor:
    """Which regions have mass, most of it transported."""
    left = 0.0 if unmatched is None else unmatched.detach().cpu().double()
    return (mass > NO_MASS) & (mass >= (1 - MOSTLY) * (mass + left))


def _exact(cosine: Tensor, plan: Tensor) -> Tensor:
    """The exact plan between the row and column sums of another one, as a fraction of 1."""
    total = plan.sum()
    if not total > 0:  # regions that send to none of these, or no regions
        return torch.full_like(plan, 1 / max(1, plan.numel()))
    sums = (plan.sum(dim=axis) / total for axis in (1, 0))
    return exact_transport((1 - cosine)[None], *(side[None] for side in sums)).plan[0]


def _within(within: Tensor | None, grid: tuple[int, int] | None, kept: Tensor, mass: Tensor) -> Tensor:
    """Affinity of the regions of one image, similarity x nearness; its row sums are about the mass of the regions."""
    similarity = torch.ones(len(mass), len(mass), dtype=torch.float64)
    if within is not None:
        similarity = within.detach().cpu().double()[kept][:, kept].clamp_min(0)
    if grid is not None:
        unit = 7 / max(grid)
        places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) * unit for side in grid))[kept]
        distance = (places[:, None] - places).square().sum(dim=2)
        similarity = similarity * torch.exp(distance / (-2 * SIGMA**2))
    similarity = similarity.fill_diagonal_(0)
    degree = similarity.sum(dim=1)
    scale = torch.where(degree > 0, mass / torch.where(degree > 0, degree, 1), 0).sqrt()
    return scale[:, None] * similarity * scale


def parts_of(ledger: Ledger, part_q: Tensor, part_g: Tensor) -> Parts:
    """The rows of given groups.

    Args:
        ledger: of the pair.
        part_q, part_g: (Rq,) and (Rg,) int64, group 0..n - 1 of each region, or -1; each group has regions of both.
    """
    plan, cosine = (side.detach().double().cpu() for side in (ledger.plan, ledger.cosine))
    contributions = plan * cosine
    weight = ledger.structural_weight
    values = ledger.whole.detach().cpu() if ledger.has_whole else weight * contributions
    score = ledger.score
    rows = []
    for number in range(int(max(part_q.max(), part_g.max())) + 1):
        of_q, of_g = part_q == number, part_g == number
        value, structural, mass = (float(of[of_q][:, of_g].sum()) for of in (values, contributions, plan))
        regions_q, regions_g = (tuple(of.nonzero().squeeze(1).tolist()) for of in (of_q, of_g))
        row = Part(
            regions_q,
            regions_g,
            value=value,
            share=_share(value, score),
            structural=structural,
            structural_share=_share(structural, ledger.structural),
            mass=mass,
            cosine=structural / mass if mass > 0 else 0.0,
            connected_q=is_connected(regions_q, ledger.grid_q),
            connected_g=is_connected(regions_g, ledger.grid_g),
        )
        rows.append(row)
    order = sorted(range(len(rows)), key=lambda k: (-rows[k].value, -rows[k].mass, rows[k].regions_q))
    place = torch.tensor([*(order.index(k) for k in range(len(rows))), -1])
    ordered = tuple(rows[k] for k in order)
    pooled = None if ledger.has_whole else ledger.pooled
    # What rounding of the vectors leaves of the whole score is between the parts, so that the sum is exact.
    between = score - sum(row.value for row in ordered) - (pooled or 0.0)
    return Parts(ordered, between, pooled, score, ledger.structural, place[part_q], place[part_g])


def is_connected(regions: Sequence[int], grid: tuple[int, int] | None) -> bool:
    """Whether regions of a grid are one piece by their 4 neighbours; true where the grid is unknown."""
    return grid is None or len(pieces(range(len(regions)), grid_neighbours(grid, regions))) <= 1


def _counted(regions: Sequence[int], connected: bool) -> str:
    return f"{len(regions)} regions" if connected else f"{len(regions)} regions, in pieces"


def _share(value: float, total: float) -> float:
    return value / total if total > 0 else 0.0
