"""Rankings of a gallery: by pooled cosine, then re-ranked on a prefix.

Legend: Q queries, G gallery images, M depth of a ranking, K re-ranked candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Stands in a ranking where a query's gallery has no image left.
NOTHING = -1


@dataclass(frozen=True, eq=False)
class Ranking:
    """The M best gallery rows of each query, best first: the beginning of a permutation of its gallery.

    Args:
        order: (Q, M) int64 gallery rows; no row twice; `NOTHING` only at the end, where the gallery is used up.
        gallery_size: G.

    Raises:
        ValueError: a row stands twice, is outside the gallery, or follows `NOTHING`.
    """

    order: Tensor
    gallery_size: int

    def __post_init__(self) -> None:
        if self.order.ndim != 2 or self.order.dtype != torch.int64:
            raise ValueError(f"order: need int64 (Q, M), got {self.order.dtype} {tuple(self.order.shape)}")
        if not self.order.numel():
            return
        if int(self.order.max()) >= self.gallery_size or int(self.order.min()) < NOTHING:
            got = f"{int(self.order.min())}..{int(self.order.max())}"
            raise ValueError(f"order: need rows 0..{self.gallery_size - 1} of the gallery, got {got}")
        rising = self.order.sort(dim=1).values
        twice = ((rising[:, 1:] == rising[:, :-1]) & (rising[:, 1:] != NOTHING)).any(dim=1)
        gap = ((self.order[:, 1:] != NOTHING) & (self.order[:, :-1] == NOTHING)).any(dim=1)
        for wrong, what in ((twice, "every gallery row once"), (gap, "no row after the end")):
            if wrong.any():
                raise ValueError(f"order: need {what}; query {int(wrong.nonzero()[0])} has it otherwise")

    @classmethod
    def _trusted(cls, order: Tensor, gallery_size: int) -> Ranking:
        """Without checks: of an order that is known to fulfil them."""
        ranking = object.__new__(cls)
        vars(ranking).update(order=order, gallery_size=gallery_size)
        return ranking

    @property
    def depth(self) -> int:
        """M, how many places of the ranking are known."""
        return self.order.shape[1]

    def reranked(self, scores: Tensor) -> Ranking:
        """Sort the first K places anew by `scores` (Q, K); the rest stays. Equal scores stand in gallery order."""
        if scores.ndim != 2 or len(scores) != len(self.order) or scores.shape[1] > self.depth:
            need = f"({len(self.order)}, K <= {self.depth})"
            raise ValueError(f"scores: need shape {need}, got {tuple(scores.shape)}")
        prefix = self.order[:, : scores.shape[1]]
        scores = scores.masked_fill(prefix == NOTHING, -torch.inf)
        prefix = _sorted_by(scores, prefix, last=self.gallery_size)
        return Ranking._trusted(torch.cat([prefix, self.order[:, scores.shape[1] :]], dim=1), self.gallery_size)


def rank(scores: Tensor, depth: int, excluded: Tensor) -> Ranking:
    """Rank a block of queries by their scores with the whole gallery.

    Only the first `depth` places are found, by partial selection; they are those of the full stable sort.

    Args:
        scores: (Q, G) float, higher is better; changed in place where a row is excluded.
        depth: places wanted; cut to G.
        excluded: (Q,) int64 gallery row that is the query itself, or `NOTHING`.
    """
    gallery = scores.shape[1]
    depth = min(depth, gallery)
    itself = (excluded != NOTHING).nonzero().flatten()
    scores[itself, excluded[itself]] = -torch.inf
    values, order = scores.topk(min(depth + 1, gallery), dim=1)
    order = order[:, :depth]
    if 0 < depth < gallery:
        # topk takes any of those that tie for the last place: where one was left out, sort that query in full
        for row in (values[:, depth - 1] == values[:, depth]).nonzero().flatten().tolist():
            order[row] = scores[row].sort(descending=True, stable=True).indices[:depth]
    values = scores.gather(1, order)
    order = order.masked_fill(order == excluded.unsqueeze(1), NOTHING)
    return Ranking(_sorted_by(values, order, last=gallery), gallery)


def _sorted_by(scores: Tensor, rows: Tensor, last: int) -> Tensor:
    """Rows (Q, M) by falling score, equal scores by rising row; `NOTHING` counts as row `last`."""
    found = scores.sort(dim=1, descending=True, stable=True)
    tied = (found.values[:, 1:] == found.values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    order = rows.gather(1, found.indices)
    if len(tied):  # hardly ever many
        place = rows[tied].masked_fill(rows[tied] == NOTHING, last).sort(dim=1).indices
        by_row, scores = rows[tied].gather(1, place), scores[tied].gather(1, place)
        order[tied] = by_row.gather(1, scores.sort(dim=1, descending=True, stable=True).indices)
    return order
