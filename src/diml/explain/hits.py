"""A query with its hits in numbers: why one stands above another, and what re-ranking did to each.

Legend: H hits, Rq regions of the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diml.explain.cells import cell_name
from diml.explain.explanation import Explanation, describe_match
from diml.explain.hits_figure import Hit, hits_figure
from diml.matching import Contrast, Ledger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class RankedHits:
    """Hits of one query, best score first, as `rank_hits` makes it.

    Args:
        matches: H matches of the query, at least one.
        pooled_rank: (H,) place of each, from 1, by the pooled cosine alone: where it stood before re-ranking.
        lift: (H, Rq) float64: what each region of the query contributes with a hit, less the mean over all hits. A
            row sums to the hit's structural score less the mean of those: hits above zero are moved up against the
            pooled order, those below zero down, by the regions that the row names.
    """

    matches: tuple[Explanation, ...]
    pooled_rank: tuple[int, ...]
    lift: Tensor

    def __len__(self) -> int:
        return len(self.matches)

    def moved(self, place: int) -> int:
        """Places that hit `place` (from 0) was moved up by re-ranking; negative: down."""
        return self.pooled_rank[place] - (place + 1)

    def contrast(self, above: int, below: int) -> Contrast:
        """Why hit `above` has another score than hit `below` (both from 0)."""
        return self.matches[above].contrast(self.matches[below])

    def draw(self, top: int = 4) -> Figure:
        """The hits in one image, a row each, with what sets each apart from the first: see `hits_figure`."""
        return hits_figure([Hit(match, note=self._note(place)) for place, match in enumerate(self.matches)], top=top)

    def _note(self, place: int) -> str:
        """How far a hit is below the first, and by which regions."""
        if place == 0:
            return ""
        contrast, grid = self.contrast(0, place), self.matches[0].grid_q
        regions = ", ".join(cell_name(region, grid) for region in contrast.top(3))
        return f"{contrast.score:.3f} below hit 1, most by {regions}"


def rank_hits(matches: Sequence[Explanation]) -> RankedHits:
    """Put matches of one query in the order of their scores, and compare that with the order by pooled cosine.

    Args:
        matches: of one query; equal scores keep their order.

    Returns:
        RankedHits.

    Raises:
        ValueError: there are none, or they are not of one query.

    Example:
        >>> hits = rank_hits(match_query("q.jpg", ["a.jpg", "b.jpg"]))  # doctest: +SKIP
        >>> hits.contrast(0, 1).score  # doctest: +SKIP
        0.0312
    """
    if not matches:
        raise ValueError("matches: need at least one, got none")
    first = matches[0]
    for match in matches:
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
    """(H, Rq) float64: what each region of a query contributes with each hit, less the mean over the hits."""
    totals = torch.stack([ledger.total_q for ledger in ledgers])
    return totals - totals.mean(dim=0)


def describe_hits(hits: RankedHits, *, top: int = 10, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A query with its hits as plain numbers and lists; fractions throughout.

    Args:
        hits: as of `rank_hits`.
        top: how many of the largest contributions of each to list.
        settings: how the matches were made; handed through.

    Returns:
        query (its name), settings, hits (each `describe_match` with rank, pooled_rank, moved and lift (Rq)), and
        contrasts: every hit but the first against the first and against the one above it, each with above and below
        (ranks from 1), score, pooled, structural, grid_q and regions (Rq).
    """
    told = []
    for place, match in enumerate(hits.matches):
        about = {"rank": place + 1, "pooled_rank": hits.pooled_rank[place], "moved": hits.moved(place)}
        numbers = describe_match(match, top=top, names=match.names)
        del numbers["settings"]
        told.append({**about, **numbers, "lift": hits.lift[place].tolist()})
    pairs = [(above, below) for below in range(1, len(hits)) for above in sorted({0, below - 1})]
    contrasts = [
        {"above": above + 1, "below": below + 1, **hits.contrast(above, below).to_dict()} for above, below in pairs
    ]
    return {
        "query": hits.matches[0].names[0],
        "settings": dict(settings or {}),
        "hits": told,
        "contrasts": contrasts,
    }
