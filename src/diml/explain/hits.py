"""The hits of a query in numbers: why one ranks above another, and how re-ranking changed the order.

Legend: H hits, Rq regions of the query.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diml.explain.explanation import Explanation, describe_match
from diml.explain.formatting import cell_name, short_path, signed
from diml.extras import require
from diml.matching import Contrast, Ledger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class RankedHits:
    """The hits of one query, best score first; made by `rank_hits`.

    Args:
        matches: H explanations of one pair each, at least one, all of the same query.
        pooled_rank: (H,) rank of each from 1 by the pooled cosine alone, that is before re-ranking.
        lift: (H, Rq) float64: contribution of each query region to a hit, minus its mean over all hits. A row sums to
            the hit's structural score minus the mean structural score: hits with a positive sum move up against the
            pooled order, those with a negative sum move down, and the entries name the regions responsible.
    """

    matches: tuple[Explanation, ...]
    pooled_rank: tuple[int, ...]
    lift: Tensor

    def __len__(self) -> int:
        return len(self.matches)

    def moved(self, place: int) -> int:
        """Ranks that hit `place` (from 0) moved up by re-ranking; negative: down."""
        return self.pooled_rank[place] - (place + 1)

    def contrast(self, above: int, below: int) -> Contrast:
        """Why hit `above` has another score than hit `below` (both from 0)."""
        return self.matches[above].contrast(self.matches[below])

    def draw(self, *, top: int = 4) -> Figure:
        """The hits in one figure, a row each, with the regions that separate each from the first: see `hits_figure`."""
        require("plot", "figures")
        from diml.explain.drawn_hits import DrawnHit, hits_figure

        return hits_figure(
            [DrawnHit(match, note=self._note(place)) for place, match in enumerate(self.matches)], top=top
        )

    def _note(self, place: int) -> str:
        """How far a hit is below the first, and by which regions."""
        if place == 0:
            return ""
        contrast, grid = self.contrast(0, place), self.matches[0].grid_q
        regions = ", ".join(cell_name(region, grid) for region in contrast.top(3))
        return f"{contrast.score:.3f} below hit 1, mainly by {regions}"

    def __repr__(self) -> str:
        best, worst = (signed(self.matches[place].ledger().score) for place in (0, -1))
        return f"RankedHits({short_path(self.matches[0].names[0])}: {len(self)} hits, scores {best} to {worst})"

    def _repr_html_(self) -> str:
        """The hits as a table, for notebooks."""
        head = "".join(
            f"<th>{name}</th>" for name in ("hit", "score", "pooled", "structural", "rank by pooled", "image")
        )
        rows = []
        for place, match in enumerate(self.matches):
            ledger = match.ledger()
            numbers = [signed(value) for value in (ledger.score, ledger.pooled, ledger.structural)]
            cells = [str(place + 1), *numbers, str(self.pooled_rank[place]), html.escape(short_path(match.names[1]))]
            rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def rank_hits(matches: Sequence[Explanation]) -> RankedHits:
    """Sort matches of one query by score, and compare this order with the order by pooled cosine.

    Args:
        matches: explanations of one pair each, all of the same query, as `match_query` returns them; equal scores keep
            their order.

    Returns:
        RankedHits.

    Raises:
        ValueError: there are none, one has several pairs, or they are of different queries.

    Example:
        >>> hits = rank_hits(match_query("q.jpg", ["a.jpg", "b.jpg"]))  # doctest: +SKIP
        >>> hits.contrast(0, 1).score  # doctest: +SKIP
        0.0312
    """
    if not matches:
        raise ValueError("matches: need at least one, got none")
    first = matches[0]
    for match in matches:
        if len(match) != 1:
            raise ValueError(f"matches: need one pair each, got {len(match)}; select one with Explanation.of")
        if match.names[0] != first.names[0] or match.plan.shape[1] != first.plan.shape[1]:
            raise ValueError(f"matches: need matches of one query, got {first.names[0]} and {match.names[0]}")
    pooled, scores = (torch.tensor([getattr(m, name).item() for m in matches]) for name in ("pooled", "score"))
    order = torch.argsort(scores, descending=True, stable=True)
    before = torch.argsort(torch.argsort(pooled, descending=True, stable=True))
    return RankedHits(
        matches=tuple(matches[row] for row in order.tolist()),
        pooled_rank=tuple((before[order] + 1).tolist()),
        lift=lift_of([matches[row].ledger() for row in order.tolist()]),
    )


def lift_of(ledgers: Sequence[Ledger]) -> Tensor:
    """(H, Rq) float64: contribution of each query region to each hit, minus its mean over the hits."""
    totals = torch.stack([ledger.total_q for ledger in ledgers])
    return totals - totals.mean(dim=0)


def describe_hits(hits: RankedHits, *, top: int = 10, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The hits of a query as plain numbers and lists; all fractions, no percentages.

    Args:
        hits: as of `rank_hits`.
        top: number of largest contributions to list of each.
        settings: how the images became regions; passed through.

    Returns:
        query (its name), settings, matcher, hits (each `describe_match` with rank, pooled_rank, moved and lift (Rq)),
        and contrasts: every hit but the first against the first and against the one above it, each with above and
        below (ranks from 1), score, pooled, structural, structural_weight, grid_q and regions (Rq).
    """
    described = []
    for place, match in enumerate(hits.matches):
        ranks = {"rank": place + 1, "pooled_rank": hits.pooled_rank[place], "moved": hits.moved(place)}
        numbers = describe_match(match, top=top, names=match.names)
        del numbers["settings"], numbers["matcher"]
        described.append({**ranks, **numbers, "lift": hits.lift[place].tolist()})
    pairs = [(above, below) for below in range(1, len(hits)) for above in sorted({0, below - 1})]
    contrasts = [
        {"above": above + 1, "below": below + 1, **hits.contrast(above, below).to_dict()} for above, below in pairs
    ]
    return {
        "query": hits.matches[0].names[0],
        "settings": dict(settings or {}),
        "matcher": hits.matches[0].matcher.to_dict(),
        "hits": described,
        "contrasts": contrasts,
    }
