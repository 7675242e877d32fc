"""How much mass each region sends or receives: Q queries, K candidates of each, Rq and Rg regions, D channels."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_correlation_weights(
    dense_q: Tensor, pooled_q: Tensor, dense_g: Tensor, pooled_g: Tensor
) -> tuple[Tensor, Tensor]:
    """Weigh each region by how well it agrees with the *other* image as a whole: relu(<region, pooled>) / sum.

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
