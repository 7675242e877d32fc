"""How much mass each region sends or receives.

Legend: Q queries, K candidates of each, Rq and Rg regions of the two sides, D channels.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

#: By agreement with the other image ("cross_correlation"), the same for every region ("uniform"), or as the network
#: itself weighs its patches, whatever the other image is ("rollout": `Regions.masses`).
Weights = Literal["cross_correlation", "uniform", "rollout"]


def cross_correlation_weights(
    dense_q: Tensor, pooled_q: Tensor, dense_g: Tensor, pooled_g: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight of each region: how well it agrees with the *other* image as a whole, relu(<region, pooled>) / sum.

    Takes unit vectors (Q, Rq, D), (Q, D) of the queries and (Q, K, Rg, D), (Q, K, D) of their candidates; returns
    weights (Q, K, Rq) and (Q, K, Rg), rows summing to 1. Source: Zhao et al., ICCV 2021, section 3.3.
    """
    mass_q = torch.einsum("qrd,qkd->qkr", dense_q, pooled_g)
    mass_g = torch.einsum("qkgd,qd->qkg", dense_g, pooled_q)
    return normalize_mass(mass_q.relu()), normalize_mass(mass_g.relu())


def normalize_mass(mass: Tensor) -> Tensor:
    """Scale non-negative mass (..., R) to rows that sum to 1; a row without any mass becomes uniform.

    Rows are divided by their largest entry first, so that tiny masses keep their proportions.
    """
    largest = mass.amax(dim=-1, keepdim=True)
    scaled = torch.where(largest > 0, mass / largest, 1)
    return scaled / scaled.sum(dim=-1, keepdim=True)


def masses_of(name: str, images: Any) -> Tensor:
    """The masses (N, R) of images, `Regions` or `QuantizedRegions`; ValueError where they carry none."""
    if images.masses is None:
        raise ValueError(f"weights: 'rollout' needs the masses of the regions, and {name} has none: {images.massless}")
    masses: Tensor = images.masses
    return masses


def given_weights(weights: tuple[Tensor, Tensor], cosine: Tensor) -> tuple[Tensor, Tensor]:
    """Check and normalise weights (B or 1, Rq) and (B or 1, Rg) that the caller gives for the pairs of `cosine`.

    Raises:
        ValueError: no two tensors, a shape that does not fit cosine (B, Rq, Rg), or negative or non-finite weights.
    """
    pairs, rows, columns = cosine.shape
    if not isinstance(weights, tuple) or len(weights) != 2:
        raise ValueError(f"weights: need two tensors, of the query's and the gallery's regions, got {weights!r}")
    for name, given, regions in (("weight_q", weights[0], rows), ("weight_g", weights[1], columns)):
        if given.ndim != 2 or given.shape[0] not in (1, pairs) or given.shape[1] != regions:
            raise ValueError(f"weights: {name} needs shape ({pairs} or 1, {regions}), got {tuple(given.shape)}")
        if not (torch.isfinite(given) & (given >= 0)).all():
            raise ValueError(f"weights: {name} needs finite, non-negative weights; clamp them first")
    weight_q, weight_g = (normalize_mass(given.to(cosine)).expand(pairs, -1) for given in weights)
    return weight_q, weight_g
