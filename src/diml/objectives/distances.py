"""Structural matching as a distance of pytorch-metric-learning (PML), for its losses, miners and wrappers.

PML represents an image by one flat vector. `pack_regions` writes regions into such vectors, and the distances here
read them back: X = (R + 1) * D numbers an image, region after region, then the pooled vector. A vector of R * D numbers
on one side is a region *map*, whose pooled vector is the mean of its regions. Proxies are stored like this.

Legend: N images, Q and G images on the two sides, B pairs, R regions, D channels, X numbers of a flat vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from pytorch_metric_learning.distances import BaseDistance, SNRDistance
from torch import Tensor

from diml.matching import Matcher, Regions
from diml.matching.planned import (
    ROOT_EPSILON,
    planned_matrix,
    planned_pairs,
    squared_length,
    training_value,
    vectors_of,
)

#: Working memory, in bytes, of a block of pairs that torch solves together; the (Q, G, R, R) plans come on top.
BLOCK_BYTES: Final = 64 * 2**20

_DEFAULT: Final = Matcher()


def pack_regions(regions: Regions) -> Tensor:
    """Write regions into one flat vector an image, differentiably; `unpack_regions` is the inverse.

    Args:
        regions: N images, dense (N, R, D) and pooled (N, D).

    Returns:
        (N, (R + 1) * D) in float32, or float64 for float64 input: the regions row by row, then the pooled vector.

    Example:
        >>> loss = losses.MultiSimilarityLoss(distance=StructuralSimilarity(regions.num_regions))
        >>> loss(pack_regions(regions), labels)
    """
    flat = torch.cat([regions.dense.flatten(1), regions.pooled], dim=1)
    return flat.to(torch.promote_types(flat.dtype, torch.float32))


def unpack_regions(flat: Tensor, regions: int) -> Regions:
    """Read flat vectors as written by `pack_regions` back into Regions.

    Args:
        flat: (N, (R + 1) * D) float.
        regions: R.

    Returns:
        N images, views of `flat`.

    Raises:
        ValueError: another shape, or vectors that are not of unit length.

    Example:
        >>> unpack_regions(pack_regions(regions), regions=16)
    """
    if flat.ndim != 2 or flat.shape[1] % (regions + 1) or flat.shape[1] == 0:
        raise ValueError(
            f"embeddings: need shape (N, ({regions} + 1) * D) as from pack_regions, got {tuple(flat.shape)}; "
            "check the number of regions"
        )
    dense = vectors_of(flat, regions)
    return Regions(dense[:, :-1], dense[:, -1])


class _Structural(BaseDistance):  # type: ignore[misc]  # the library has no types
    """What similarity and distance have in common: reading flat vectors, solving for plans, summing up."""

    def __init__(self, regions: int | None = None, matcher: Matcher = _DEFAULT, *, power: float = 1) -> None:
        super().__init__(normalize_embeddings=False, is_inverted=self._inverted, power=power)
        if regions is not None and (not isinstance(regions, int) or regions < 1):
            raise ValueError(f"regions: need a number of regions, 1 or more, got {regions!r}; 16 for a 4 x 4 grid")
        if not isinstance(matcher, Matcher):
            raise TypeError(f"matcher: need a Matcher, got {type(matcher).__name__}; e.g. Matcher(epsilon=0.05)")
        if matcher.learned:
            raise ValueError("matcher: a learned matcher is for ranking, got one to train with; use Matcher(...)")
        if matcher.weights == "rollout":
            raise ValueError(
                "matcher: weights 'rollout' are for ranking, as packed regions carry no masses of their image; "
                "train with 'cross_correlation' or 'uniform', and rank with 'rollout'"
            )
        self.regions, self.matcher = regions, matcher
        self.unconverged_pairs = 0
        self._sharing = False
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None
        self._only: Tensor | None = None

    _inverted: bool

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Within this block the matrix of the same two tensors is computed once, for the miner and the loss.

        Callers get copies, because PML edits matrices in place.

        Example:
            >>> with distance.sharing():
            ...     value = loss(packed, labels, miner(packed, labels))
        """
        self._sharing = True
        try:
            yield
        finally:
            self._sharing, self._kept, self._only = False, None, None

    def only(self, pairs: Tensor) -> None:
        """Until `sharing` ends, solve only these pairs (2, B) of a batch with itself, in either order, if they are few.

        Every other entry of the matrix is NaN, so that a loss that reads one is noticed.
        """
        self._only = pairs

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """(Q, G) from flat vectors (Q, Xq) and (G, Xg); differentiable, plans without gradient."""
        if not self._sharing:
            return self._matrix(query_emb, ref_emb)
        if self._kept is None or self._kept[0] is not query_emb or self._kept[1] is not ref_emb:
            only = self._only if query_emb is ref_emb and self.matcher.symmetric else None
            with torch.enable_grad():  # a miner may ask first, without gradient
                if only is not None and 8 * only.shape[1] <= len(query_emb) ** 2:
                    matrix = self._chosen(query_emb, only)
                else:
                    matrix = self._matrix(query_emb, ref_emb)
            self._kept = (query_emb, ref_emb, matrix)
        return self._kept[2].clone()

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """(B,) from flat vectors (B, X) and (B, X), row by row."""
        query, gallery = self._packed(query_emb, ref_emb)
        if len(query) != len(gallery):
            raise ValueError(f"query_emb, ref_emb: need as many rows, got {len(query)} and {len(gallery)}")
        rows = torch.arange(len(query), device=query.device)
        return self._pairs(torch.cat([query, gallery]), rows, rows + len(query))

    def _pairs(self, packed: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """(B,) of images i and j (B,) of packed (N, X)."""
        count = self._known_regions
        with torch.autocast(packed.device.type, enabled=False):
            planned = planned_pairs(packed, None, i, j, count, self.matcher, distance=not self._inverted)
            if planned is not None:
                self.unconverged_pairs = planned.unconverged
                return planned.values
            return self._matched_pairs(*(unpack_regions(packed.index_select(0, rows), count) for rows in (i, j)))

    def _matched_pairs(self, query: Regions, gallery: Regions) -> Tensor:
        """(B,) computed in torch, on any device and in any precision: the twin of `planned_pairs`."""
        found = self.matcher.match(query, gallery)
        self.unconverged_pairs = int((~found.converged).sum())
        lengths = squared_length(query.dense).unsqueeze(2), squared_length(gallery.dense).unsqueeze(1)
        dense = self._value(found.cosine, *lengths)
        pooled = self._value(found.pooled, squared_length(query.pooled), squared_length(gallery.pooled))
        return training_value((found.plan * dense).sum(dim=(1, 2)), pooled, self.matcher)

    def _chosen(self, embeddings: Tensor, pairs: Tensor) -> Tensor:
        """(N, N) with the values of pairs (2, B) of rows, in either order, and NaN elsewhere."""
        images = len(embeddings)
        each = torch.unique(pairs.amin(dim=0) * images + pairs.amax(dim=0))
        i, j = each // images, each % images
        values = self._pairs(self._packed(embeddings, embeddings)[0], i, j)
        twice = i != j  # an entry on the diagonal is written once: each write takes the whole gradient
        places = torch.cat([each, (j * images + i)[twice]])
        empty = values.new_full((images * images,), torch.nan)
        return empty.index_put((places,), torch.cat([values, values[twice]])).view(images, images)

    def _matrix(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        count = self._known_regions
        query, gallery = self._packed(query_emb, ref_emb)
        symmetric = query_emb is ref_emb
        with torch.autocast(query_emb.device.type, enabled=False):
            other = None if symmetric else gallery
            planned = planned_matrix(query, other, count, self.matcher, distance=not self._inverted)
            if planned is not None:
                self.unconverged_pairs = planned.unconverged
                return planned.values
            sides = unpack_regions(query, count), unpack_regions(gallery, count)
            structural = self._structural_matrix(*sides, symmetric=symmetric and self.matcher.symmetric)
            lengths = squared_length(sides[0].pooled)[:, None], squared_length(sides[1].pooled)[None]
            pooled = self._value(sides[0].pooled @ sides[1].pooled.T, *lengths)
            return training_value(structural, pooled, self.matcher)

    def _structural_matrix(self, query: Regions, gallery: Regions, symmetric: bool) -> Tensor:
        """(Q, G) computed in torch, on any device and in any precision: the twin of `planned_matrix`."""
        plans = self._plans(query, gallery, symmetric)  # (Q, G, R, R)
        cosine = query.dense.flatten(0, 1) @ gallery.dense.flatten(0, 1).T
        cosine = cosine.reshape(len(query), -1, len(gallery), gallery.num_regions).transpose(1, 2)
        length_q = squared_length(query.dense)[:, None, :, None]
        length_g = squared_length(gallery.dense)[None, :, None, :]
        return (plans * self._value(cosine, length_q, length_g)).sum(dim=(2, 3))

    def _value(self, cosine: Tensor, length_q: Tensor, length_g: Tensor) -> Tensor:
        """The cosine or the distance of two vectors; lengths are squared, 0 or 1."""
        raise NotImplementedError

    @torch.no_grad()
    def _plans(self, query: Regions, gallery: Regions, symmetric: bool) -> Tensor:
        """(Q, G, R, R) by `Matcher.match`, in blocks of pairs; a pair and its mirror image are solved once."""
        query, gallery = (Regions(side.dense.detach(), side.pooled.detach()) for side in (query, gallery))
        rows, regions = len(query), query.num_regions
        pairs = torch.ones(rows, len(gallery), device=query.dense.device).nonzero().T
        if symmetric:
            pairs = pairs[:, pairs[0] <= pairs[1]]
        plans = query.dense.new_empty(rows, len(gallery), regions, gallery.num_regions)
        per_pair = query.dense.element_size() * (2 * (regions + 1) * query.dim + 8 * regions * regions)
        self.unconverged_pairs = 0
        for i, j in zip(*(part.split(max(1, BLOCK_BYTES // per_pair)) for part in pairs), strict=True):
            found = self.matcher.match(query[i], gallery[j])
            plans[i, j] = found.plan
            if symmetric:
                plans[j, i] = found.plan.mT
            self.unconverged_pairs += int((~found.converged).sum())
        return plans

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"regions={self.regions}, matcher={self.matcher}, power={self.power}"

    @property
    def _known_regions(self) -> int:
        """R; ValueError where it is not known yet."""
        if self.regions is None:
            raise ValueError(f"regions: unknown; build with it, e.g. {type(self).__name__}(regions=16)")
        return self.regions

    def _packed(self, query_emb: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides packed; the side with R * D columns, if any, is a map and gets its pooled vector here."""
        width, dim = max(query_emb.shape[1], ref_emb.shape[1]), abs(query_emb.shape[1] - ref_emb.shape[1])
        if dim and width != (self._known_regions + 1) * dim:
            got = f"{query_emb.shape[1]} and {ref_emb.shape[1]}"
            raise ValueError(f"embeddings: need R * D or (R + 1) * D columns for R = {self.regions}, got {got}")
        query = self._read(query_emb, is_map=query_emb.shape[1] < width)
        return query, query if ref_emb is query_emb else self._read(ref_emb, is_map=ref_emb.shape[1] < width)

    def _read(self, flat: Tensor, is_map: bool) -> Tensor:
        count = self._known_regions
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32)).contiguous()
        if is_map:
            dense = flat.view(len(flat), count, flat.shape[1] // count)
            return pack_regions(Regions.normalized(dense, dense.mean(dim=1)))
        if not _is_packed(flat, count):
            unpack_regions(flat, count)  # raises an error that says what is wrong
        return flat


def _is_packed(flat: Tensor, regions: int) -> bool:
    """Whether (N, X) consists of unit and zero vectors: what `unpack_regions` checks, in one pass."""
    if flat.ndim != 2 or flat.shape[1] == 0 or flat.shape[1] % (regions + 1):
        return False
    length = torch.linalg.vector_norm(vectors_of(flat.detach(), regions), dim=2)
    return bool((((length - 1).abs() < 1e-3) | (length == 0)).all())


class StructuralSimilarity(_Structural):
    """Similarity of region maps for PML: (sum_ij plan_ij * cosine_ij + pooled cosine) / 2.

    The plan is that of `Matcher.match`, solved without gradient; gradients flow through the cosines. Give it to a pair
    loss or miner as `distance=`, and call those with `pack_regions(regions)`. With another `matcher.structural_weight`
    w the value is (w * structural + pooled) / (w + 1). With `matcher.share` below 1, only what is transported counts.
    With `matcher.matching` "maxsim_query" rows are the queries, and the matrix of a batch is not symmetric.

    Called with flat (Q, X) and (G, X) float tensors, it gives (Q, G) in [-1, 1]; higher is more similar.

    Args:
        regions: R of the packed regions; may be omitted in what is given to `build_objective`, which sets it.
        matcher: settings of the plans and of the weight of the structural part.
        power: exponent of the whole matrix.

    Raises:
        ValueError: shapes that do not fit, or vectors that are not of unit length.

    Source: Zhao et al., ICCV 2021, sections 3.2 to 3.4.

    Example:
        >>> distance = StructuralSimilarity(regions=16, matcher=Matcher(epsilon=0.05))
        >>> miner = miners.MultiSimilarityMiner(0.1, distance=distance)
        >>> loss = losses.MultiSimilarityLoss(2, 40, 0.5, distance=distance)
        >>> loss(pack_regions(regions), labels, miner(pack_regions(regions), labels))
    """

    _inverted = True

    def _value(self, cosine: Tensor, length_q: Tensor, length_g: Tensor) -> Tensor:
        return cosine


class StructuralDistance(_Structural):
    """Distance of region maps for PML: (sum_ij plan_ij * ||q_i - g_j|| + ||Q - G||) / 2.

    Norms are taken with 1e-6 under the root. Arguments, use and errors are those of `StructuralSimilarity`, but the
    share of the matcher has to be a number. The matrix lies in [0, 2], lower is more similar. Source: Zhao et al., ICCV
    2021, and the authors' code for margin + DIML.

    Example:
        >>> loss = losses.MarginLoss(0.2, beta=1.2, distance=StructuralDistance(regions=16, matcher=Matcher()))
        >>> loss(pack_regions(regions), labels, triplets)
    """

    _inverted = False

    def __init__(self, regions: int | None = None, matcher: Matcher = _DEFAULT, *, power: float = 1) -> None:
        super().__init__(regions, matcher, power=power)
        if self.matcher.share == "auto":
            raise ValueError(
                "matcher: share 'auto' would bring images near that have nothing in common, as only regions that are "
                "matched have a distance; use a number as share, or StructuralSimilarity"
            )

    def _value(self, cosine: Tensor, length_q: Tensor, length_g: Tensor) -> Tensor:
        return ((length_q + length_g - 2 * cosine).clamp(min=0) + ROOT_EPSILON).sqrt()


class SignalToNoiseDistance(SNRDistance):  # type: ignore[misc]
    """PML's var(anchor - other) / var(anchor), finite also for a blank image, whose variance is zero.

    Source: Yuan, Deng, Tang, Tang, Chen, CVPR 2019.
    """

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """(Q, G) from (Q, D) and (G, D); not symmetric."""
        noise = (query_emb.unsqueeze(1) - ref_emb).var(dim=2)
        return noise / query_emb.var(dim=1, keepdim=True).clamp(min=torch.finfo(noise.dtype).eps)
