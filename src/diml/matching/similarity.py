"""Compare images region by region: `match` for pairs, `rerank` for a query against its candidates.

Legend: B pairs, Q queries, K candidates of each, Rq and Rg regions of the two sides, D channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

import torch
from torch import Tensor

from diml.matching import native
from diml.matching.contrast import Contrast
from diml.matching.ledger import Ledger
from diml.matching.marginals import cross_correlation_weights, normalize_mass
from diml.matching.regions import QuantizedRegions, Regions
from diml.matching.sinkhorn import TransportPlan, checked_solver, sinkhorn

Marginals = Literal["cross_correlation", "uniform"] | tuple[Tensor, Tensor]
Score = Literal["both", "structural", "pooled"]
Grid = tuple[int, int]


#: Working memory to aim at where torch does the work.
BLOCK_BYTES = 64 * 2**20


class ConvergenceWarning(UserWarning):
    """So many `pairs` stopped at max_iterations: their scores carry the marginal error that is left."""

    def __init__(self, pairs: int) -> None:
        super().__init__(f"{pairs} pairs stopped above the tolerance; raise max_iterations or epsilon")
        self.pairs = pairs


class MatchSettings(TypedDict, total=False):
    """Settings of `match`, for functions that hand them on."""

    marginals: Marginals
    epsilon: float
    tolerance: float
    max_iterations: int


@dataclass(frozen=True, eq=False)
class Match(TransportPlan):
    """B compared pairs: the plan of each (fields of `TransportPlan`) and what it adds up to.

    Args:
        cosine: (B, Rq, Rg) cosine of each pair of regions.
        structural: (B,) sum of plan * cosine.
        pooled: (B,) cosine of the pooled vectors.
        weight_q, weight_g: (B, Rq) and (B, Rg) mass that each region sends or receives.
        grid_q, grid_g: (rows, columns) of the regions, or None where they form no known grid.
    """

    cosine: Tensor
    structural: Tensor
    pooled: Tensor
    weight_q: Tensor
    weight_g: Tensor
    grid_q: Grid | None = None
    grid_g: Grid | None = None

    @property
    def score(self) -> Tensor:
        """(B,) pooled + structural, the multi-scale similarity of the paper, in [-2, 2]."""
        return self.pooled + self.structural

    def __len__(self) -> int:
        return self.plan.shape[0]

    def ledger(self, pair: int = 0) -> Ledger:
        """The score of one pair as a sum of part-to-part contributions."""
        cosine, pooled = self.cosine[pair].detach(), float(self.pooled[pair].detach())
        return Ledger(self.plan[pair], cosine, pooled, self.grid_q, self.grid_g)

    def contrast(self, other: Match, pair: int = 0, other_pair: int = 0) -> Contrast:
        """Why one of these pairs scores above a pair of `other`; both must be of the same query (see `Contrast`)."""
        return self.ledger(pair).contrast(other.ledger(other_pair))


def match(
    query: Regions,
    gallery: Regions,
    *,
    marginals: Marginals = "cross_correlation",
    epsilon: float = 0.05,
    tolerance: float = 5e-6,
    max_iterations: int = 1000,
) -> Match:
    """Compare row i of `query` with row i of `gallery`, region by region.

    Gradients flow through the cosines and not through the plan: as the plan is a minimiser, its own change does
    not matter to first order for the regularised transport cost (envelope theorem).

    Args:
        query, gallery: B images each, or one against B; R may differ between the sides, D may not.
        marginals: "cross_correlation" (a region weighs as much as it agrees with the other image), "uniform", or
            a pair of weights (B or 1, Rq), (B or 1, Rg), non-negative, which are scaled to sum to 1 a row.
        epsilon: entropy of the plan, in units of cosine; smaller is sharper and takes more iterations.
        tolerance: marginal error at which a pair is done.
        max_iterations: cap for pairs that do not get there; see `Match.converged`.

    Returns a Match of B pairs in float32 (float64 for float64 input), also under autocast; raises TypeError or
    ValueError where the sides do not fit or a setting is out of range. Source: Zhao et al., ICCV 2021, section 3.
    """
    _check(query, gallery)
    if len(query) != len(gallery) and 1 not in (len(query), len(gallery)):
        got = f"{len(query)} and {len(gallery)}"
        raise ValueError(f"query, gallery: need as many images on both sides, or one on one side; got {got}")
    if len(query) == 1:  # one query against many shares one matrix product
        dense_g, pooled_g = gallery.dense.unsqueeze(0), gallery.pooled.unsqueeze(0)
    else:
        dense_g = gallery.dense.unsqueeze(1).expand(len(query), -1, -1, -1)
        pooled_g = gallery.pooled.unsqueeze(1).expand(len(query), -1, -1)
    settings = MatchSettings(marginals=marginals, epsilon=epsilon, tolerance=tolerance, max_iterations=max_iterations)
    return _compare(query, dense_g, pooled_g, gallery.grid, settings)


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
        query, gallery: Q and N images on one device, stored in any float type; the gallery also in int8.
        candidates: (Q, K) integer rows of `gallery`; K may be 0.
        score: "both" = pooled + structural (the paper's), or one of the two alone.
        block_bytes: working memory to aim at, in bytes, where torch does the work.
        settings: marginals, epsilon, tolerance, max_iterations with the meaning and defaults of `match`.

    Returns (Q, K) scores, higher is more alike, float32 (float64 for float64 input), without gradient; raises
    TypeError or ValueError for wrong candidates; warns (ConvergenceWarning) of pairs stopped at `max_iterations`.
    """
    _check(query, gallery, candidates)
    if score not in get_args(Score):
        raise ValueError(f"score: need one of {get_args(Score)}, got {score!r}")
    stored = gallery.codes if isinstance(gallery, QuantizedRegions) else gallery.dense
    named = settings.get("marginals", "cross_correlation") in ("cross_correlation", "uniform")
    if named and stored.dtype in native.STORED and native.suits(query.dense, stored, gallery.pooled):
        scores, unfinished = _rerank_native(query, gallery, candidates, score, settings)
    else:
        scores, unfinished = _rerank_torch(query, gallery, candidates, score, block_bytes, settings)
    if unfinished:
        warnings.warn(ConvergenceWarning(unfinished), stacklevel=3)
    return scores


def _rerank_native(
    query: Regions, gallery: Regions | QuantizedRegions, candidates: Tensor, score: Score, settings: MatchSettings
) -> tuple[Tensor, int]:
    """Scores (Q, K) by the kernel, and how many pairs stopped early; what float32 cannot hold is left to torch."""
    solver: Any = {name: value for name, value in settings.items() if name != "marginals"}
    given = (gallery.pooled, candidates, settings.get("marginals") == "uniform", *checked_solver(**solver))
    if isinstance(gallery, QuantizedRegions):
        found = native.score(query.dense, query.pooled, gallery.codes, gallery.scale, *given)
    else:
        found = native.score(query.dense, query.pooled, gallery.dense, None, *given)
    parts = {"structural": found.structural, "pooled": found.pooled, "both": found.structural + found.pooled}
    scores, unfinished = parts[score], int((~found.converged & ~found.too_wide).sum())
    at_once = max(1, BLOCK_BYTES // (query.num_regions * query.dim * query.dense.element_size()))
    too_wide = found.too_wide.nonzero()  # torch solves these from copies of their queries
    for start in range(0, len(too_wide), at_once):
        rows, places = too_wide[start : start + at_once].T
        again = candidates[rows, places].unsqueeze(1)
        solved, more = _rerank_torch(query[rows], gallery, again, score, BLOCK_BYTES, settings)
        scores[rows, places], unfinished = solved.squeeze(1), unfinished + more
    return scores, unfinished


def _rerank_torch(
    query: Regions,
    gallery: Regions | QuantizedRegions,
    candidates: Tensor,
    score: Score,
    block_bytes: int,
    settings: MatchSettings,
) -> tuple[Tensor, int]:
    """Scores (Q, K) block by block, and how many pairs stopped early."""
    dtype = torch.promote_types(torch.promote_types(query.dense.dtype, gallery.pooled.dtype), torch.float32)
    scores = query.pooled.new_empty(candidates.shape, dtype=dtype)
    unfinished = 0
    for rows, columns in _blocks(query, gallery, candidates.shape[1], block_bytes):
        chosen = candidates[rows, columns].long()
        found = _compare(query[rows], *gallery.gather(chosen), gallery.grid, settings)
        scores[rows, columns] = (found.score if score == "both" else getattr(found, score)).reshape(chosen.shape)
        unfinished += int((~found.converged).sum())
    return scores, unfinished


def _compare(query: Regions, dense_g: Tensor, pooled_g: Tensor, grid_g: Grid | None, settings: MatchSettings) -> Match:
    """The method: Q queries against dense_g (Q, K, Rg, D) and pooled_g (Q, K, D); pairs flattened to B = Q * K."""
    marginals = settings.get("marginals", "cross_correlation")
    solver: Any = {name: value for name, value in settings.items() if name != "marginals"}
    dtype = torch.promote_types(torch.promote_types(query.dense.dtype, dense_g.dtype), torch.float32)
    with torch.autocast(dense_g.device.type, enabled=False):
        dense_q, pooled_q, dense_g, pooled_g = (t.to(dtype) for t in (query.dense, query.pooled, dense_g, pooled_g))
        cosine = torch.einsum("qrd,qkgd->qkrg", dense_q, dense_g).flatten(0, 1)
        pooled = (pooled_q.unsqueeze(1) * pooled_g).sum(dim=2).flatten()
        with torch.no_grad():
            if marginals == "cross_correlation":
                weights = cross_correlation_weights(dense_q, pooled_q, dense_g, pooled_g)
                weight_q, weight_g = (weight.flatten(0, 1) for weight in weights)
            else:
                weight_q, weight_g = _given_weights(marginals, cosine)
            transport = sinkhorn(1 - cosine, weight_q, weight_g, **solver)
        structural = (transport.plan * cosine).sum(dim=(1, 2))
    parts = {"cosine": cosine, "structural": structural, "pooled": pooled, "weight_q": weight_q, "weight_g": weight_g}
    return Match(**vars(transport), **parts, grid_q=query.grid, grid_g=grid_g)


def _given_weights(marginals: Marginals, cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform or given weights (B, Rq) and (B, Rg) for the pairs of cosine (B, Rq, Rg)."""
    pairs, rows, columns = cosine.shape
    if marginals == "uniform":
        return cosine.new_full((pairs, rows), 1 / rows), cosine.new_full((pairs, columns), 1 / columns)
    if not isinstance(marginals, tuple) or len(marginals) != 2:
        raise ValueError(f"marginals: need 'cross_correlation', 'uniform' or two weight tensors, got {marginals!r}")
    for name, given, regions in (("weight_q", marginals[0], rows), ("weight_g", marginals[1], columns)):
        if given.ndim != 2 or given.shape[0] not in (1, pairs) or given.shape[1] != regions:
            raise ValueError(f"marginals: {name} needs shape ({pairs} or 1, {regions}), got {tuple(given.shape)}")
        if not (torch.isfinite(given) & (given >= 0)).all():
            raise ValueError(f"marginals: {name} needs finite, non-negative weights; clamp them first")
    weight_q, weight_g = (normalize_mass(given.to(cosine)).expand(pairs, -1) for given in marginals)
    return weight_q, weight_g


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


def _check(query: Regions, gallery: Regions | QuantizedRegions, candidates: Tensor | None = None) -> None:
    for side, kinds in ((query, Regions), (gallery, Regions if candidates is None else Regions | QuantizedRegions)):
        if not isinstance(side, kinds):
            raise TypeError(f"query, gallery: need Regions, got {type(side).__name__}; diml.match takes pictures")
    if query.dim != gallery.dim or query.pooled.device != gallery.pooled.device:
        got = f"D {query.dim} on {query.pooled.device} and D {gallery.dim} on {gallery.pooled.device}"
        raise ValueError(f"query, gallery: need one D and one device, got {got}; embed both with one model")
    if candidates is None:
        return
    if candidates.is_floating_point() or candidates.dtype == torch.bool:
        raise TypeError(f"candidates: need integer row numbers, got {candidates.dtype}; convert with .long()")
    if candidates.ndim != 2 or len(candidates) != len(query):
        raise ValueError(f"candidates: need shape ({len(query)}, K), got {tuple(candidates.shape)}")
    if candidates.numel() and not 0 <= int(candidates.min()) <= int(candidates.max()) < len(gallery):
        got = f"{int(candidates.min())}..{int(candidates.max())}"
        raise ValueError(f"candidates: need rows 0..{len(gallery) - 1} of the gallery, got {got}")
