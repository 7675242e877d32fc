"""One pair as plain numbers and lists, for JSON and for the viewer of pages.

Legend: B pairs, Rq and Rg regions of the two sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diml.explain.explanation import Explanation, checked_pair
from diml.explain.formatting import cell_of
from diml.explain.summary import Summary, summarise
from diml.matching import Match
from diml.matching.cell_names import cell_name
from diml.matching.ledger import Flow


def describe_match(
    match: Match,
    pair: int = 0,
    *,
    top: int = 10,
    names: tuple[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    parts: int | None = None,
    summary: Summary | None = None,
) -> dict[str, Any]:
    """One pair of a match as plain numbers and lists; all fractions, no percentages.

    Args:
        match: B pairs.
        pair: which of them, -B..B-1.
        top: number of largest contributions to list.
        names: of the two images.
        settings: how the images became regions; passed through.
        parts: number of parts; chosen by itself when omitted.
        summary: of the pair, where it is to be made from another plan than the numbers; else made here.

    Returns:
        names {query, gallery}, settings, matcher (its settings), plan_shown (see `Explanation.plan_shown`), note
        (where the sum differs from the score that ranks), summary (see `Summary`), score, ranked_by, pooled,
        structural, structural_weight, convergence {converged, marginal_error, iterations} of the plan that ranks,
        grid_q and grid_g ([rows, columns] or None), weight_q (Rq) and weight_g (Rg), top (a list of flows, each with
        region_q, region_g, mass, cosine, contribution, cell_q and cell_g as [row, column] from 0, name_q and name_g as
        in the figure), total_q (Rq) and total_g (Rg) of the structural score, pooled_parts {total_q, total_g} of the
        pooled cosine and whole {total_q, total_g} of the whole score (None where it is not divided; then undivided says
        why), parts (see `Parts.to_dict`), unmatched {query (Rq), gallery (Rg)} mass that is not transported (None where
        all is), potentials {query (Rq), gallery (Rg)} of an exact plan (else None): 1 - cosine - the potentials of two
        regions is how much more alike they would have to be before they were matched; plan and cosine (Rq x Rg).

    Raises:
        IndexError: there is no such pair.
        ValueError: `top` is negative.
    """
    ledger = match.ledger(checked_pair(match, pair))
    one = Explanation.of(match, pair=pair)
    numbers, groups = ledger.to_dict(top), ledger.parts(parts)
    return {
        "names": None if names is None else {"query": names[0], "gallery": names[1]},
        "settings": dict(settings or {}),
        "matcher": match.matcher.to_dict(),
        "plan_shown": one.plan_shown,
        "note": one.note(),
        "summary": (summarise(one, parts=groups) if summary is None else summary).to_dict(),
        "score": numbers["score"],
        "ranked_by": one.ranked_by(),
        **{name: numbers[name] for name in ("pooled", "structural", "structural_weight")},
        "convergence": {
            "converged": bool(match.converged[pair]),
            "marginal_error": float(match.marginal_error[pair]),
            "iterations": int(match.iterations[pair]),
        },
        "grid_q": match.grid_q and list(match.grid_q),
        "grid_g": match.grid_g and list(match.grid_g),
        "weight_q": match.weight_q[pair].tolist(),
        "weight_g": match.weight_g[pair].tolist(),
        "top": [_describe_flow(flow, match) for flow in ledger.top(top)],
        "total_q": numbers["total_q"],
        "total_g": numbers["total_g"],
        "pooled_parts": _totals(ledger.pooled_parts),
        "whole": _totals(ledger.whole if ledger.has_whole else None),
        "undivided": "" if ledger.has_whole else ledger.undivided,
        "parts": groups.to_dict(),
        "unmatched": _sides(ledger.unmatched_q, ledger.unmatched_g),
        "potentials": _sides(*(None if side is None else side[0] for side in (one.potential_q, one.potential_g))),
        "plan": numbers["plan"],
        "cosine": numbers["cosine"],
    }


def _totals(values: Tensor | None) -> dict[str, list[float]] | None:
    """Row and column sums."""
    return None if values is None else {"total_q": values.sum(dim=1).tolist(), "total_g": values.sum(dim=0).tolist()}


def _sides(query: Tensor | None, gallery: Tensor | None) -> dict[str, list[float]] | None:
    return None if query is None or gallery is None else {"query": query.tolist(), "gallery": gallery.tolist()}


def _describe_flow(flow: Flow, match: Match) -> dict[str, Any]:
    sides = (("q", flow.region_q, match.grid_q), ("g", flow.region_g, match.grid_g))
    described: dict[str, Any] = {}
    for side, region, grid in sides:
        cell = cell_of(region, grid)
        described[f"region_{side}"] = region
        described[f"cell_{side}"] = cell and list(cell)
        described[f"name_{side}"] = cell_name(region, grid)
    return {**described, "mass": flow.mass, "cosine": flow.cosine, "contribution": flow.contribution}
