"""Structural re-ranking as the `knn_func` of PML's `AccuracyCalculator`, and with it of its testers.

Legend: Q queries, G references, R regions, D channels, K re-ranked neighbours.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from diml.matching import Matcher, Ranking, Regions, nearest
from diml.matching.retrieval import following_distances
from diml.objectives.distances import unpack_regions

_DEFAULT: Final = Matcher()


class StructuralKNN:
    """Nearest neighbours by pooled cosine, the first K re-ranked by structural matching, as PML calls for them.

    Give it to `AccuracyCalculator(knn_func=...)`; a tester takes that calculator. Embeddings are those of
    `pack_regions`, (R + 1) * D numbers an image; a tester that scales them to unit length does no harm.

    Args:
        regions: R, regions of an image.
        rerank_at: K, how many neighbours of each query are re-ranked; 0 for none.
        matcher: settings of the comparison.

    Raises:
        ValueError: R below 1, or K below 0.

    Example:
        >>> knn = StructuralKNN(regions=16, rerank_at=100)
        >>> calculator = AccuracyCalculator(include=("precision_at_1",), k=100, knn_func=knn)
        >>> calculator.get_accuracy(pack_regions(embedder.embed(photos)), labels)  # doctest: +SKIP
    """

    def __init__(self, regions: int, rerank_at: int = 100, matcher: Matcher = _DEFAULT) -> None:
        for name, value, least in (("regions", regions, 1), ("rerank_at", rerank_at, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: need an integer of at least {least}, got {value!r}")
        self.regions, self.rerank_at, self.matcher = regions, rerank_at, matcher

    @torch.no_grad()
    def __call__(
        self, query: Tensor, k: int, reference: Tensor, ref_includes_query: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The k nearest references of each query, best first.

        Args:
            query, reference: (Q, (R + 1) * D) and (G, (R + 1) * D) packed regions.
            k: neighbours wanted, at most G, or G - 1 where the query is left out.
            ref_includes_query: the first Q references are the queries: a query is not its own neighbour, and both
                directions of a pair count as one comparison, as in `evaluate_regions`.

        Returns:
            (Q, k) distances, increasing, and (Q, k) int64 rows of the reference. Distances of the first K are minus the
            score, moved so that they end where the others begin; those of the others are 1 - cosine.

        Raises:
            ValueError: embeddings of another shape or length, or more neighbours wanted than there are.
        """
        most = len(reference) - int(ref_includes_query)
        if not 1 <= k <= most:
            raise ValueError(f"k: need 1 to {most} neighbours, got {k}; set k of the AccuracyCalculator")
        asked, stored = self._unpacked(query), self._unpacked(reference)
        itself = torch.arange(len(query), device=query.device) if ref_includes_query else None
        ranking = nearest(asked, stored, max(k, min(self.rerank_at, most)), exclude=itself)
        candidates = ranking.order[:, : self.rerank_at]
        pooled = 1 - torch.einsum("qd,qkd->qk", asked.pooled, stored.pooled[ranking.order])
        if not candidates.shape[1]:
            return pooled, ranking.order
        if itself is not None:
            found = self.matcher.score_unique_pairs(stored, itself, candidates)
            found.warn(stacklevel=2)
            scores = found.scores
        else:
            scores = self.matcher.score(asked, stored, candidates)
        better: Ranking = ranking.reranked(scores)
        first = scores.sort(dim=1, descending=True).values
        distances = following_distances(first, pooled[:, candidates.shape[1] :])
        return distances[:, :k], better.order[:, :k]

    def _unpacked(self, flat: Tensor) -> Regions:
        """Regions of packed vectors, each of which may have been scaled as a whole."""
        if flat.ndim == 2 and flat.shape[1] % (self.regions + 1) == 0:
            length = flat[:, -(flat.shape[1] // (self.regions + 1)) :].norm(dim=1, keepdim=True)
            flat = flat / torch.where(length > 0, length, 1)
        return unpack_regions(flat, self.regions)
