"""Codes of at most 32 bytes for a region: half a kilobyte for an image of 16 regions, whatever D.

Product quantisation (Jegou, Douze, Schmid, "Product Quantization for Nearest Neighbor Search", PAMI 2011): the channels
of a region are cut into groups of neighbours, and each group is replaced by the number of the nearest of 256 centroids.
The centroids are fitted by k-means, without labels, on the gallery itself, and rounded to 8-bit integers: those of 128
channels take 32 kB, and a decoded region is made of integers. It is brought to unit length, as centroids are means and
shorter than what they stand for. Comparisons are asymmetric: regions of the query are not coded.

Legend: N images, R regions, D channels, S groups of w channels each (the last one may have fewer).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

#: Bytes of a region at most: S.
CODE_BYTES: Final = 32
#: Centroids of a group. The first is zero, so that a region of zeros stays one.
CENTROIDS: Final = 256
#: The largest integer of a centroid.
_LARGEST: Final = 127
#: Images that centroids are fitted on at most; regions that are needed to fit them.
FIT_IMAGES: Final = 2_000
LEAST_REGIONS: Final = 4 * CENTROIDS
#: Channels of a region at most, so that the products of the kernel stay below 2^31.
MOST_CHANNELS: Final = 130_000

_ITERATIONS: Final = 12
#: Regions that are compared with the centroids together.
_AT_ONCE: Final = 2048


def group_width(dim: int) -> int:
    """w, channels of a group where regions have `dim`."""
    return -(-dim // CODE_BYTES)


def group_count(dim: int) -> int:
    """S, bytes of the code of a region of `dim` channels."""
    return -(-dim // group_width(dim))


@dataclass(frozen=True, eq=False)
class Codebooks:
    """The centroids that codes of regions stand for; a gallery shares them.

    Args:
        centroids: (S, 256, w) int8, on the CPU, the first centroid of each group zero; channels beyond D are zero.
        step: what 1 stands for in them, in units of a region's length; it only matters when regions are encoded.
        dim: D, at most 130,000.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or value.
    """

    centroids: Tensor
    step: float
    dim: int

    def __post_init__(self) -> None:
        if self.centroids.dtype != torch.int8:
            raise TypeError(f"centroids: need int8, got {self.centroids.dtype}; Codebooks.fit makes them")
        within = 1 <= self.dim <= MOST_CHANNELS
        shape = (group_count(self.dim), CENTROIDS, group_width(self.dim)) if within else None
        if tuple(self.centroids.shape) != shape:
            got = f"{tuple(self.centroids.shape)} for D {self.dim}"
            raise ValueError(f"centroids: need (S, {CENTROIDS}, w), which are {shape}, got {got}")
        if not 0 < self.step < math.inf:
            raise ValueError(f"step: need a finite number above 0, got {self.step}; fit the centroids again")

    @classmethod
    @torch.no_grad()
    def fit(cls, dense: Tensor, *, seed: int = 0) -> Codebooks:
        """Fit centroids on the regions of a gallery by k-means; the same regions and seed give the same centroids.

        Args:
            dense: (N, R, D) unit vectors in any float type; of more than 2,000 images as many are drawn.
            seed: of the draws.

        Raises:
            ValueError: fewer than 1,024 regions are not blank, so that 256 centroids would say little of others.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(dense), generator=generator)[:FIT_IMAGES].sort().values
        regions = dense[drawn.to(dense.device)].detach().cpu().float().flatten(0, 1)
        regions = regions[regions.any(dim=1)]
        if len(regions) < LEAST_REGIONS:
            need = f"at least {LEAST_REGIONS:,} regions that are not blank"
            raise ValueError(
                f"storage: '1kb' needs {need} to fit its codes, got {len(regions):,} of {len(dense):,} images; use int8"
            )
        dim = dense.shape[2]
        groups = _cut(regions, dim)
        centroids = torch.stack([_fitted(group.contiguous(), generator) for group in groups])
        step = float(centroids.abs().max() / _LARGEST)
        return cls((centroids / step).round_().to(torch.int8), step, dim)

    @torch.no_grad()
    def encode(self, dense: Tensor) -> Tensor:
        """The codes (..., S) uint8 of regions (..., D)."""
        if dense.shape[-1] != self.dim:
            raise ValueError(f"dense: need D {self.dim} as the centroids, got {dense.shape[-1]}; use one model for all")
        rows = dense.detach().flatten(0, -2)
        codes = torch.empty(len(rows), len(self.centroids), dtype=torch.uint8, device=dense.device)
        centroids = self.centroids.to(dense.device).float() * self.step
        for start in range(0, len(rows), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            part = rows[some].float()
            for group, (vectors, known) in enumerate(zip(_cut(part, self.dim), centroids, strict=True)):
                codes[some, group] = _nearest(vectors, known).to(torch.uint8)
            codes[some][~part.any(dim=1)] = 0
        return codes.view(*dense.shape[:-1], -1)

    def decode(self, codes: Tensor) -> Tensor:
        """The regions (..., D) float32 of codes (..., S), at unit length; codes of zeros are regions of zeros."""
        groups, _, width = self.centroids.shape
        first = CENTROIDS * torch.arange(groups, device=codes.device)
        flat = self.centroids.to(codes.device).view(-1, width)
        dense = flat[codes.long() + first].flatten(-2)[..., : self.dim].float()
        length = torch.linalg.vector_norm(dense, dim=-1, keepdim=True)
        return dense / torch.where(length > 0, length, 1)


def _cut(regions: Tensor, dim: int) -> Tensor:
    """Regions (n, D) as (S, n, w), with zeros for the channels that the last group lacks."""
    width, groups = group_width(dim), group_count(dim)
    padded = torch.nn.functional.pad(regions, (0, width * groups - dim))
    return padded.view(len(regions), groups, width).transpose(0, 1)


def _nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """(n,) int64: for each of `vectors` (n, w) the nearest of `centroids` (k, w), k at most 256.

    The largest product minus half the centroid's square is looked for with the centroid's number in its lowest 8 bits:
    three times as fast as `argmax`. It takes distances that differ by less than 2^-15 of it to be the same.
    """
    numbers = torch.arange(len(centroids), dtype=torch.int32, device=centroids.device)
    closeness = torch.addmm(centroids.square().sum(dim=1).div_(-2), vectors, centroids.mT)
    numbered = closeness.view(torch.int32).bitwise_and_(-CENTROIDS).bitwise_or_(numbers)
    return numbered.view(torch.float32).amax(dim=1).view(torch.int32).bitwise_and_(CENTROIDS - 1).long()


def _fitted(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """(256, w) centroids of `vectors` (n, w): k-means from drawn vectors; the first is zero.

    A centroid that nothing is nearest to moves to a vector of those that are furthest from theirs.
    """
    centroids = vectors[torch.randperm(len(vectors), generator=generator)[: CENTROIDS - 1]].clone()
    for _ in range(_ITERATIONS):
        place = torch.cat([_nearest(some, centroids) for some in torch.split(vectors, _AT_ONCE)])
        count = torch.bincount(place, minlength=len(centroids))
        total = torch.zeros_like(centroids).index_add_(0, place, vectors)
        empty = (count == 0).nonzero().flatten()
        if len(empty):
            distance = (vectors - centroids[place]).square().sum(dim=1)
            total[empty] = vectors[distance.argsort(descending=True, stable=True)[: len(empty)]]
        centroids = total / count.clamp_min(1).unsqueeze(1)
    return torch.cat([torch.zeros_like(centroids[:1]), centroids])
