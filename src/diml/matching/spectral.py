"""Groups of the nodes of a graph by its leading eigenvectors, without random numbers.

Legend: N nodes, n groups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Limit of the rounds of k-means, which stops before where no node changes its group.
ROUNDS: Final = 50


class Division(NamedTuple):
    """Group 0..n - 1 of each node, and the gap between the n-th eigenvalue and the next: large where n groups suit."""

    groups: list[int]
    gap: float


def spectral_groups(affinity: Tensor, counts: Iterable[int]) -> list[Division]:
    """Divide the nodes of a graph into groups that cut little of it, for each of some numbers of groups.

    The nodes are embedded by the leading eigenvectors of D^(-1/2) A D^(-1/2), which are the last ones of the normalised
    Laplacian, and divided by spherical k-means from a farthest-point start. Both depend on angles between nodes only,
    so that signs and rotations of the eigenvectors are of no consequence.

    Args:
        affinity: (N, N) symmetric, non-negative float64 with zero diagonal.
        counts: numbers of groups n, at least 1 each; of more than N, N are made.

    Returns:
        For each n its division; a group may be empty.

    Source: Shi and Malik, PAMI 2000; Ng, Jordan and Weiss, NeurIPS 2001.
    """
    degree = affinity.sum(dim=1)
    scale = torch.where(degree > 0, degree, 1).rsqrt()
    found = torch.linalg.eigh(scale[:, None] * affinity * scale)
    values, vectors = [*found.eigenvalues.flip(0).tolist(), -1.0], found.eigenvectors.flip(1)
    return [
        Division(_divided(F.normalize(vectors[:, :n], dim=1), degree).tolist(), values[n - 1] - values[n])
        for n in (min(count, len(affinity)) for count in counts)
    ]


def _divided(embedded: Tensor, weight: Tensor) -> Tensor:
    """Spherical k-means of nodes embedded in (N, n), n centres; the first one is the node farthest from the mean."""
    count = embedded.shape[1]
    alike = embedded @ embedded.T
    chosen = [int((alike @ weight).argmin())]
    while len(chosen) < count:
        chosen.append(int(alike[:, chosen].amax(dim=1).argmin()))
    groups = alike[:, chosen].argmax(dim=1)
    for _ in range(ROUNDS):
        members = F.one_hot(groups, count).double() * weight[:, None]
        moved = (embedded @ F.normalize(members.T @ embedded, dim=1).T).argmax(dim=1)
        if torch.equal(moved, groups):
            break
        groups = moved
    return groups
