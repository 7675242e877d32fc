"""The hits of a query in numbers: why one ranks above another, and how re-ranking changed the order.

Legend: H hits, Rq regions of the query.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diml.explain.description import describe_match
from diml.explain.explanation import Explanation, Plan, View
from diml.explain.formatting import short_path, signed
from diml.explain.shown_plan import shown_plan
from diml.explain.summary import summarise
from diml.explain.wording import likely
from diml.extras import require
from diml.matching import Contrast, Ledger
from diml.matching.cell_names import cell_name

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

    def draw(
        self,
        *,
        view: View = "parts",
        plan: Plan = "exact",
        top: int = 4,
        parts: int | None = None,
        overlay: bool | None = None,
        colours: Sequence[str] | None = None,
        width: float | None = None,
    ) -> Figure:
        """The hits in one figure, a row each, with the regions that separate each from the first: see `hits_figure`."""
        require("plot", "figures")
        from diml.explain.hits_figure import DrawnHit, hits_figure

        return hits_figure(
            [DrawnHit(match, note=self._note(place)) for place, match in enumerate(self.matches)],
            view=view,
            plan=plan,
            top=top,
            parts=parts,
            overlay=overlay,
            colours=colours,
            width=width,
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
        head, *rows = self.table()
        lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>"]
        lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
        return f"<table>{''.join(lines)}</table>"

    def table(self) -> list[list[str]]:
        """The hits as text, a row each below the names of the columns.

        The column "likely" is P(same class), where it is known.
        """
        chances = [match.probability_of() for match in self.matches]
        known = any(chance is not None for chance in chances)
        rows = [["hit", *(["likely"] if known else []), "score", "pooled", "structural", "rank by pooled", "image"]]
        for place, (match, chance) in enumerate(zip(self.matches, chances, strict=True)):
            ledger = match.ledger()
            sure = ["" if chance is None else likely(chance)] if known else []
            numbers = [signed(value) for value in (ledger.score, ledger.pooled, ledger.structural)]
            rows.append([str(place + 1), *sure, *numbers, str(self.pooled_rank[place]), short_path(match.names[1])])
        return rows


def rank_hits(matches: Sequence[Explanation]) -> RankedHits:
    """Sort matches of one query by score, and compare this order with the order by pooled cosine.

    Args:
        matches: explanations of one pair each, all of the same query, as `match_query` returns them; equal scores keep
            their order. With a calibrator, and as many as it was fitted on for each query, each gets the probability of
            a hit among the others, unless it has one; with other numbers it is that of its score alone.

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
    ranked = [matches[row] for row in order.tolist()]
    return RankedHits(
        matches=_with_probabilities(ranked),
        pooled_rank=tuple((before[order] + 1).tolist()),
        lift=lift_of([match.ledger() for match in ranked]),
    )


def _with_probabilities(ranked: Sequence[Explanation]) -> tuple[Explanation, ...]:
    """The matches with the probabilities of hits, where the calibration is for lists of this length."""
    calibrator = ranked[0].calibrator
    if calibrator is None or len(ranked) != calibrator.depth:
        return tuple(ranked)
    found = calibrator.hit_probability(np.array([match.ranked_by() for match in ranked]))
    return tuple(
        dataclasses.replace(match, probability=float(chance)) if match.probability is None else match
        for match, chance in zip(ranked, found, strict=True)
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
        query (its name), settings, matcher, hits (each `describe_match` of the plan that ranks, with a summary of the
        exact plan, and rank, pooled_rank, moved and lift (Rq)), and contrasts: every hit but the first against the
        first and against the one above it, each with above and below (ranks from 1), score, pooled, structural,
        structural_weight, grid_q, regions (Rq) of the structural score and, where it is known, whole (Rq).
    """
    described = []
    for place, match in enumerate(hits.matches):
        ranks = {"rank": place + 1, "pooled_rank": hits.pooled_rank[place], "moved": hits.moved(place)}
        summary = summarise(shown_plan(match))
        numbers = describe_match(match, top=top, names=match.names, summary=summary)
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
