"""Compare images region by region, with the plan of every pair: `match`.

Legend: B pairs, Q queries, K candidates of each, Rq and Rg regions of the two sides, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from diml.matching.contrast import Contrast
from diml.matching.ledger import Ledger
from diml.matching.regions import QuantizedRegions, Regions
from diml.matching.transport import TransportPlan, sinkhorn
from diml.matching.weights import cross_correlation_weights, normalize_mass

Marginals = Literal["cross_correlation", "uniform"] | tuple[Tensor, Tensor]
Grid = tuple[int, int]


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
    tolerance: float = 4e-6,
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
    check_sides(query, gallery)
    if len(query) != len(gallery) and 1 not in (len(query), len(gallery)):
        got = f"{len(query)} and {len(gallery)}"
        raise ValueError(f"query, gallery: need as many images on both sides, or one on one side; got {got}")
    if len(query) == 1:  # one query against many shares one matrix product
        dense_g, pooled_g = gallery.dense.unsqueeze(0), gallery.pooled.unsqueeze(0)
    else:
        dense_g = gallery.dense.unsqueeze(1).expand(len(query), -1, -1, -1)
        pooled_g = gallery.pooled.unsqueeze(1).expand(len(query), -1, -1)
    settings = MatchSettings(marginals=marginals, epsilon=epsilon, tolerance=tolerance, max_iterations=max_iterations)
    return compare(query, dense_g, pooled_g, gallery.grid, settings)


def compare(query: Regions, dense_g: Tensor, pooled_g: Tensor, grid_g: Grid | None, settings: MatchSettings) -> Match:
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


def check_sides(
    query: Regions, gallery: Regions | QuantizedRegions, candidates: Tensor | None = None, name: str = "candidates"
) -> None:
    """Raise TypeError or ValueError, with `name` for the candidates, where two sides cannot be compared."""
    for side, kinds in ((query, Regions), (gallery, Regions if candidates is None else Regions | QuantizedRegions)):
        if not isinstance(side, kinds):
            raise TypeError(f"query, gallery: need Regions, got {type(side).__name__}; diml.match takes images")
    if query.dim != gallery.dim or query.pooled.device != gallery.pooled.device:
        got = f"D {query.dim} on {query.pooled.device} and D {gallery.dim} on {gallery.pooled.device}"
        raise ValueError(f"query, gallery: need one D and one device, got {got}; embed both with one model")
    if candidates is None:
        return
    if candidates.is_floating_point() or candidates.dtype == torch.bool:
        raise TypeError(f"{name}: need integer row numbers, got {candidates.dtype}; convert with .long()")
    if candidates.ndim != 2 or len(candidates) != len(query):
        raise ValueError(f"{name}: need shape ({len(query)}, K), got {tuple(candidates.shape)}")
    if candidates.numel() and not 0 <= int(candidates.min()) <= int(candidates.max()) < len(gallery):
        got = f"{int(candidates.min())}..{int(candidates.max())}"
        raise ValueError(f"{name}: need rows 0..{len(gallery) - 1} of the gallery, got {got}")
