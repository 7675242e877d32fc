"""Structural re-ranking as a retrieval post-processor of open-metric-learning (OML), which is not imported.

Legend: N images, Q queries, K re-ranked candidates.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from diml.matching import Matcher, QuantizedRegions, Regions
from diml.matching.retrieval import NOTHING, following_distances

_DEFAULT: Final = Matcher()


class StructuralPostprocessor:
    """Re-ranks the first `top_n` retrieved images of each query by structural matching, with OML's call `process`.

    Args:
        regions: those of all N images of the OML data set, in its order.
        top_n: K, at least 2: how many retrieved images of each query are compared again.
        matcher: settings of the comparison.

    Raises:
        ValueError: `top_n` below 2.

    Example:
        >>> results = RetrievalResults.from_embeddings(regions.pooled, dataset, n_items=100)  # doctest: +SKIP
        >>> better = StructuralPostprocessor(regions, top_n=50).process(results, dataset)  # doctest: +SKIP
    """

    def __init__(self, regions: Regions | QuantizedRegions, top_n: int, matcher: Matcher = _DEFAULT) -> None:
        if isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 2:
            raise ValueError(f"top_n: need an integer of at least 2, got {top_n!r}")
        self.regions, self._top_n, self.matcher = regions, top_n, matcher

    @property
    def top_n(self) -> int:
        """How many retrieved images of each query are compared again."""
        return self._top_n

    def process(self, rr: Any, dataset: Any) -> Any:
        """Return new results of the same class: the first `top_n` of each query in a better order, the rest unchanged.

        Args:
            rr: `RetrievalResults` of OML, or an object with `distances`, `retrieved_ids` (Q vectors each, of any
                lengths) and `gt_ids`, whose class takes these three.
            dataset: with `get_query_ids()` and `get_gallery_ids()`, rows of its images.

        Returns:
            Results whose first distances are minus the score, moved so that they end where the others begin.

        Raises:
            ValueError: results of another number of queries, or a data set of another number of images.
        """
        queries, gallery = (torch.as_tensor(ids).long().flatten() for ids in _sides(dataset))
        if len(queries) != len(rr.retrieved_ids):
            raise ValueError(
                f"rr: need results of the {len(queries)} queries of the data set, got {len(rr.retrieved_ids)}; "
                "retrieve with the same data set"
            )
        largest = max((int(ids.max()) for ids in (queries, gallery) if len(ids)), default=-1)
        if largest >= len(self.regions):
            raise ValueError(
                f"dataset: need images 0 to {len(self.regions) - 1}, those with regions, got {largest}; embed "
                "all images of the data set, in its order"
            )
        first = [ids[: self.top_n].cpu() for ids in rr.retrieved_ids]
        rows = torch.full((len(first), max(map(len, first), default=0)), NOTHING)
        for row, ids in zip(rows, first, strict=True):
            row[: len(ids)] = gallery[ids]
        scored = self.matcher.score_unique_pairs(self.regions, queries, rows)
        scored.warn(stacklevel=2)
        found = [
            self._reranked(ids, distances, own[: len(some)])
            for ids, distances, own, some in zip(rr.retrieved_ids, rr.distances, scored.scores, first, strict=True)
        ]
        return type(rr)(
            distances=tuple(distances for distances, _ in found),
            retrieved_ids=tuple(ids for _, ids in found),
            gt_ids=rr.gt_ids,
        )

    def _reranked(self, ids: Tensor, distances: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and rows of one query, in the new order; equal scores keep their order."""
        best = scores.to(ids.device).sort(descending=True, stable=True)
        ordered = torch.cat([ids[: len(scores)][best.indices], ids[len(scores) :]])
        rest = distances[len(scores) :]
        return following_distances(best.values.to(rest).unsqueeze(0), rest.unsqueeze(0))[0], ordered


def _sides(dataset: Any) -> tuple[Any, Any]:
    return dataset.get_query_ids(), dataset.get_gallery_ids()
