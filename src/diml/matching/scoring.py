"""Score many pairs without their plans: `rerank` for queries against their candidates, `score_pairs` for any pairs.

The compiled kernel does it on the CPU, else torch in blocks. Legend: B pairs, Q queries, K candidates of each,
N images, R regions, D channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor

from diml.matching import native
from diml.matching.regions import SHORTS_PER_UNIT, QuantizedRegions, Regions
from diml.matching.similarity import MatchSettings, check_sides, compare
from diml.matching.transport import checked_solver

Score = Literal["both", "structural", "pooled"]

#: Working memory to aim at where torch does the work.
BLOCK_BYTES = 64 * 2**20

#: Pairs that are scored together: more does not go faster, and copies of queries stay small.
PAIRS_AT_ONCE = 2**17


class ConvergenceWarning(UserWarning):
    """So many `pairs` stopped at max_iterations: their scores carry the marginal error that is left."""

    def __init__(self, pairs: int) -> None:
        super().__init__(f"{pairs} pairs stopped above the tolerance; raise max_iterations or epsilon")
        self.pairs = pairs


@torch.no_grad()
def rerank(
    query: Regions,
    gallery: Regions | QuantizedRegions,
    candidates: Tensor,
    *,
    score: Score = "both",
    block_bytes: int = BLOCK_BYTES,
    **settings: Unpack[MatchSettings],
) -> Tensor:
    """Score query i against the gallery rows `candidates[i]`: by the compiled kernel on the CPU, else in blocks.

    Args:
        query, gallery: Q and N images on one device, stored in any float type; the gallery also in int8 or int16.
        candidates: (Q, K) integer rows of `gallery`; K may be 0.
        score: "both" = pooled + structural (the paper's), or one of the two alone.
        block_bytes: working memory to aim at, in bytes, where torch does the work.
        settings: marginals, epsilon, tolerance, max_iterations with the meaning and defaults of `match`.

    Returns (Q, K) scores, higher is more alike, float32 (float64 for float64 input), without gradient; raises
    TypeError or ValueError for wrong candidates; warns (ConvergenceWarning) of pairs stopped at `max_iterations`.
    """
    check_sides(query, gallery, candidates)
    if _compiled(query, gallery, score, settings):
        rows = torch.arange(len(query)).repeat_interleave(candidates.shape[1])
        scores, converged = _score_native(query, gallery, rows, candidates.flatten(), score, settings)
    else:
        scores, converged = _rerank_torch(query, gallery, candidates, score, block_bytes, settings)
    if not converged.all():
        warnings.warn(ConvergenceWarning(int((~converged).sum())), stacklevel=3)
    return scores.reshape(candidates.shape)


@torch.no_grad()
def score_pairs(
    images: Regions | QuantizedRegions,
    left: Tensor,
    right: Tensor,
    *,
    score: Score = "both",
    **settings: Unpack[MatchSettings],
) -> tuple[Tensor, Tensor]:
    """Score image `left[b]`, as the query, against image `right[b]`, as `rerank` does, of any pairs.

    Args:
        images: N images.
        left, right: (B,) integer rows of them; pairs of one `left` go fastest side by side.
        score, settings: as in `rerank`.

    Returns (B,) scores and (B,) bool, whether a pair got below the tolerance; raises as `rerank`.
    """
    for name, rows in (("left", left), ("right", right)):
        check_sides(images[:1], images, rows.unsqueeze(0), name)
    if len(left) != len(right):
        raise ValueError(f"left, right: need as many rows, got {len(left)} and {len(right)}")
    way = _score_native if _compiled(images[:1], images, score, settings) else _pairs_torch
    found = []
    for some in torch.split(torch.arange(len(left)), PAIRS_AT_ONCE):
        rows, place = torch.unique_consecutive(left[some], return_inverse=True)
        found.append(way(images[rows], images, place, right[some], score, settings))
    scores, converged = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(converged)


def _compiled(query: Regions, gallery: Regions | QuantizedRegions, score: Score, settings: MatchSettings) -> bool:
    """Whether the kernel does it; refuses a wrong `score`."""
    if score not in get_args(Score):
        raise ValueError(f"score: need one of {get_args(Score)}, got {score!r}")
    stored = gallery.codes if isinstance(gallery, QuantizedRegions) else gallery.dense
    named = settings.get("marginals", "cross_correlation") in ("cross_correlation", "uniform")
    return named and stored.dtype in native.STORED and native.suits(query.dense, stored, gallery.pooled)


def _score_native(
    query: Regions,
    gallery: Regions | QuantizedRegions,
    rows: Tensor,
    images: Tensor,
    score: Score,
    settings: MatchSettings,
) -> tuple[Tensor, Tensor]:
    """Scores (B,) by the kernel, and which are converged; what float32 cannot hold is left to torch."""
    solver: Any = {name: value for name, value in settings.items() if name != "marginals"}
    given = (gallery.pooled, rows, images, settings.get("marginals") == "uniform", *checked_solver(**solver))
    codes, scale = (gallery.codes, gallery.scale) if isinstance(gallery, QuantizedRegions) else (gallery.dense, None)
    found = native.score(query.dense, query.pooled, codes, scale, *given)
    parts = {"structural": found.structural, "pooled": found.pooled, "both": found.structural + found.pooled}
    scores, converged, wide = parts[score], found.converged, found.too_wide.nonzero().squeeze(1)
    if len(wide):
        scores[wide], converged[wide] = _pairs_torch(query, gallery, rows[wide], images[wide], score, settings)
    return scores, converged


def _pairs_torch(
    query: Regions,
    gallery: Regions | QuantizedRegions,
    rows: Tensor,
    images: Tensor,
    score: Score,
    settings: MatchSettings,
) -> tuple[Tensor, Tensor]:
    """Scores (B,) of single pairs, from copies of their queries, and which are converged."""
    at_once = max(1, BLOCK_BYTES // (query.num_regions * query.dim * query.dense.element_size()))
    found = [
        _rerank_torch(query[rows[some]], gallery, images[some].unsqueeze(1), score, BLOCK_BYTES, settings)
        for some in torch.split(torch.arange(len(rows)), at_once)
    ]
    scores, converged = (torch.cat(parts).squeeze(1) for parts in zip(*found, strict=True))
    return scores, converged


def _rerank_torch(
    query: Regions,
    gallery: Regions | QuantizedRegions,
    candidates: Tensor,
    score: Score,
    block_bytes: int,
    settings: MatchSettings,
) -> tuple[Tensor, Tensor]:
    """Scores (Q, K) block by block, and which are converged."""
    integers = isinstance(gallery, QuantizedRegions) and gallery.codes.dtype == torch.int16
    compared = Regions._trusted(_steps(query.dense), _steps(query.pooled), query.grid) if integers else query
    dtype = torch.promote_types(torch.promote_types(query.dense.dtype, gallery.pooled.dtype), torch.float32)
    scores = query.pooled.new_empty(candidates.shape, dtype=dtype)
    converged = torch.ones_like(candidates, dtype=torch.bool)
    for rows, columns in _blocks(query, gallery, candidates.shape[1], block_bytes):
        chosen = candidates[rows, columns].long()
        dense, pooled = gallery.gather(chosen)
        found = compare(compared[rows], dense, _steps(pooled) if integers else pooled, gallery.grid, settings)
        if integers:  # rounded vectors weigh the regions; what they have in common themselves is not
            found = replace(found, pooled=(query.pooled[rows].unsqueeze(1) * pooled).sum(dim=2).flatten())
        scores[rows, columns] = (found.score if score == "both" else getattr(found, score)).reshape(chosen.shape)
        converged[rows, columns] = found.converged.reshape(chosen.shape)
    return scores, converged


def _steps(vectors: Tensor) -> Tensor:
    """Vectors in the steps of 16-bit codes, float32 or better; by way of float64, whose products are exact."""
    codes = (vectors.double() * SHORTS_PER_UNIT).round_()
    return codes.to(torch.promote_types(vectors.dtype, torch.float32)).mul_(1 / SHORTS_PER_UNIT)


def _blocks(
    query: Regions, gallery: Regions | QuantizedRegions, candidates: int, block_bytes: int
) -> Iterator[tuple[slice, slice]]:
    """Cut the (Q, K) table of pairs into rectangles that need about `block_bytes` (at least one pair each)."""
    gathered = gallery.num_regions * gallery.dim * 8  # as stored and as computed
    limit = max(1, block_bytes // (gathered + 24 * query.num_regions * gallery.num_regions))
    rows, columns = max(1, limit // max(1, candidates)), max(1, min(candidates, limit))
    for top in range(0, len(query), rows):
        for left in range(0, candidates, columns):
            yield slice(top, top + rows), slice(left, left + columns)
