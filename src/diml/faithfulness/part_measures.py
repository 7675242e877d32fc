"""Parts of pairs whose truth is known: do they land where they should, do they stay the same, how much do they hold?

Legend: B pairs, Rq and Rg regions of the two sides, n parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diml.faithfulness.warps import Truth, Warp, true_cells
from diml.matching import Match
from diml.matching.ledger import Ledger
from diml.matching.parts import Parts, parts_of

Floats = NDArray[np.float64]

#: Number of parts that all methods make, so that a division into 2 x 2 is among them.
COUNT: Final = 4

#: Ways to group the regions of both images: our parts, and others to compare them with.
PART_METHODS: Final = ("parts", "k-means", "argmax", "division")

#: Rows whose share of the score is reported.
TOP: Final = (3, 5)


@dataclass(frozen=True)
class PartAccuracy:
    """How well the parts of two images fit a known warp, as fractions.

    Args:
        landing: of the mass of the query's regions with a true counterpart, how much moves inside their part and
            arrives in the true image of the part.
        purity: of the mass that they move inside their part, how much arrives in its true image.
        agreement: adjusted Rand index of the parts of these regions and the parts of their true counterparts: 1 where
            they divide alike, 0 at chance level.
    """

    landing: float
    purity: float
    agreement: float


PART_QUANTITIES: Final = tuple(field.name for field in fields(PartAccuracy))


def kmeans_parts(ledger: Ledger, dense_q: Tensor, dense_g: Tensor, n: int) -> Parts:
    """Groups of the regions of both images by k-means of their features (Rq, D) and (Rg, D)."""
    from sklearn.cluster import KMeans  # type: ignore[import-untyped]
    from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]

    features = torch.cat([dense_q, dense_g]).detach().cpu().double()
    # Coordinates in the space that the regions span: the same distances in far fewer dimensions.
    values, vectors = torch.linalg.eigh(features @ features.T)
    places = (vectors * values.clamp_min(0).sqrt()).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different features than groups: some stay empty
        groups = torch.from_numpy(KMeans(min(n, len(places)), n_init=10, random_state=0).fit_predict(places)).long()
    return parts_of(ledger, groups[: len(dense_q)], groups[len(dense_q) :])


def argmax_parts(ledger: Ledger, part_q: Tensor) -> Parts:
    """Given parts of the query (Rq,); each gallery region joins that of the region with the largest cosine."""
    return parts_of(ledger, part_q, part_q[ledger.cosine.detach().cpu().argmax(dim=0)])


def divided_parts(ledger: Ledger, n: int) -> Parts:
    """Both images divided into n rectangles, 2 x 2 for n = 4, each matched with the one at its place."""
    rows = max(count for count in range(1, n + 1) if n % count == 0 and count * count <= n)
    sides = []
    for grid in (ledger.grid_q, ledger.grid_g):
        assert grid is not None
        row, column = (torch.arange(side) * count // side for side, count in zip(grid, (rows, n // rows), strict=True))
        sides.append((row[:, None] * (n // rows) + column).flatten())
    return parts_of(ledger, *sides)


def grouped(match: Match, pair: int, n: int | None) -> dict[str, Parts]:
    """Method -> its parts of one pair: of `PART_METHODS`, or where n is None "parts" alone, which chooses the number.

    The rows of all are sums of the same ledger.
    """
    ledger = match.ledger(pair)
    own = ledger.parts(n)
    if n is None:
        return {"parts": own}
    if match.dense_q is None or match.dense_g is None:
        raise ValueError("match: need the regions that were compared (dense_q, dense_g), got none; use Matcher.match")
    return {
        "parts": own,
        "k-means": kmeans_parts(ledger, match.dense_q[pair], match.dense_g[pair], n),
        "argmax": argmax_parts(ledger, own.part_q),
        "division": divided_parts(ledger, n),
    }


def part_accuracy(parts: Parts, plan: Tensor, truth: Truth, back: Truth) -> PartAccuracy | None:
    """The accuracy of the parts of one pair under a known warp.

    The true image of a part are the gallery regions whose centre comes from one of its regions of the query.

    Args:
        parts: of the pair.
        plan: (Rq, Rg) mass.
        truth: the true counterparts of the query's regions.
        back: those of the gallery image's regions in the query.

    Returns:
        PartAccuracy; None where no region with mass has a counterpart.
    """
    from sklearn.metrics import adjusted_rand_score  # type: ignore[import-untyped]

    mass, inside = plan.detach().double().cpu(), torch.from_numpy(truth.inside)
    total = float(mass[inside].sum())
    if total <= 0:
        return None
    truly = torch.where(torch.from_numpy(back.inside), parts.part_q[torch.from_numpy(back.cell)], -1)
    together = (parts.part_q[:, None] == parts.part_g) & (parts.part_q[:, None] >= 0)
    landed = float((mass * (together & (parts.part_q[:, None] == truly)))[inside].sum())
    moved = float((mass * together)[inside].sum())
    counterparts = parts.part_g[torch.from_numpy(truth.cell)][inside]
    agreement = float(adjusted_rand_score(parts.part_q[inside].numpy(), counterparts.numpy()))
    return PartAccuracy(landed / total, landed / moved if moved > 0 else 0.0, agreement)


def part_accuracies(match: Match, warps: Sequence[Warp], n: int = COUNT) -> dict[str, Floats]:
    """Method -> (B', 3) values of `PART_QUANTITIES` of all pairs with counterparts.

    Args:
        match: B pairs of two windows of one photo each, on known grids, with the regions that were compared.
        warps: B.
        n: number of parts.
    """
    grids = _grids(match)
    found: dict[str, list[tuple[float, ...]]] = {}
    for pair, warp in enumerate(warps):
        truth, back = true_cells(warp, *grids), true_cells(Warp(warp.gallery, warp.query), *reversed(grids))
        for name, parts in grouped(match, pair, n).items():
            accuracy = part_accuracy(parts, match.plan[pair], truth, back)
            if accuracy is not None:
                found.setdefault(name, []).append(astuple(accuracy))
    return {name: np.array(rows) for name, rows in found.items()}


def part_stability(before: Match, after: Match, n: int | None = COUNT) -> dict[str, Floats]:
    """Method -> (B,) adjusted Rand index of the parts of the regions of both images before and after a perturbation.

    Args:
        before, after: the same B pairs, of which one image of each was perturbed.
        n: number of parts; None leaves it to `Ledger.parts` and has "parts" only.
    """
    from sklearn.metrics import adjusted_rand_score

    found: dict[str, list[float]] = {}
    for pair in range(len(before)):
        first, second = (grouped(match, pair, n) for match in (before, after))
        for name in first:
            labels = [torch.cat([parts.part_q, parts.part_g]).numpy() for parts in (first[name], second[name])]
            found.setdefault(name, []).append(float(adjusted_rand_score(*labels)))
    return {name: np.array(values) for name, values in found.items()}


def held_shares(match: Match, n: int | None = COUNT) -> dict[str, Floats]:
    """Method -> (B, 2) share of the structural and of the whole score inside all parts; NaN where it is not divided."""
    found: dict[str, list[tuple[float, float]]] = {}
    for pair in range(len(match)):
        for name, parts in grouped(match, pair, n).items():
            whole = parts.share if parts.pooled is None else float("nan")
            found.setdefault(name, []).append((parts.structural_share, whole))
    return {name: np.array(values) for name, values in found.items()}


def row_shares(match: Match, n: int | None = None) -> dict[tuple[str, str], Floats]:
    """(method, quantity) -> (B,) share of the score on the largest rows: of "cells" and of "parts".

    Quantities are "structural top 3", "whole top 3" and so on, for `TOP`; those of the whole score only where the
    pooled cosine is divided (`Ledger.whole`).
    """
    found: dict[tuple[str, str], list[float]] = {}
    for pair in range(len(match)):
        ledger = match.ledger(pair)
        parts = ledger.parts(n)
        rows = {
            ("cells", "structural"): ledger.contributions.flatten() / ledger.structural,
            ("parts", "structural"): torch.tensor([row.structural_share for row in parts.rows], dtype=torch.float64),
        }
        if ledger.has_whole:
            rows["cells", "whole"] = ledger.whole.flatten() / ledger.score
            rows["parts", "whole"] = torch.tensor([row.share for row in parts.rows], dtype=torch.float64)
        for (method, score), values in rows.items():
            for top in TOP:
                largest = values.sort(descending=True).values[:top]
                found.setdefault((method, f"{score} top {top}"), []).append(float(largest.sum()))
    return {key: np.array(values) for key, values in found.items()}


def _grids(match: Match) -> tuple[tuple[int, int], tuple[int, int]]:
    if match.grid_q is None or match.grid_g is None:
        raise ValueError("match: need regions on known grids, got none; give the embedder one with grid=7")
    return match.grid_q, match.grid_g
