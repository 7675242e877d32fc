"""Rankings of a gallery: the nearest by pooled cosine (stage 1), then re-ranked on a prefix (stage 2).

Legend: Q queries, G gallery images, M depth of a ranking, K re-ranked candidates, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diml.matching import native
from diml.matching.regions import QuantizedRegions, Regions

#: Stands in a ranking where a query's gallery has no image left.
NOTHING = -1

#: Queries that are ranked together at most, with the compiled kernel and without; larger blocks bring no speed-up.
QUERIES_AT_ONCE = {True: 8192, False: 256}

#: Bytes that the scores of a block of queries with the whole gallery may take, where torch does the work.
SCORE_BYTES = 128 * 2**20


@dataclass(frozen=True, eq=False, repr=False)
class Ranking:
    """The M best gallery rows of each query, best first: the beginning of a permutation of its gallery.

    Args:
        order: (Q, M) int64 gallery rows; no row twice; `NOTHING` only at the end, where the gallery is used up.
        gallery_size: G.
        scores: (Q, M) scores of these rows where they are known, in the same order; -infinity at `NOTHING`.

    Raises:
        ValueError: a row stands twice, is outside the gallery, or follows `NOTHING`; scores of another shape.
    """

    order: Tensor
    gallery_size: int
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        if self.order.ndim != 2 or self.order.dtype != torch.int64:
            raise ValueError(f"order: need int64 (Q, M), got {self.order.dtype} {tuple(self.order.shape)}")
        if self.scores is not None and self.scores.shape != self.order.shape:
            raise ValueError(f"scores: need shape {tuple(self.order.shape)}, got {tuple(self.scores.shape)}")
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
                raise ValueError(f"order: need {what}; the ranking of query {int(wrong.nonzero()[0])} violates it")

    @classmethod
    def _trusted(cls, order: Tensor, gallery_size: int, scores: Tensor | None = None) -> Ranking:
        """Build without checks, from an order known to be valid."""
        ranking = object.__new__(cls)
        vars(ranking).update(order=order, gallery_size=gallery_size, scores=scores)
        return ranking

    @property
    def depth(self) -> int:
        """M, the number of ranks that are known."""
        return self.order.shape[1]

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        return f"Ranking({len(self)} queries, {self.depth} of {self.gallery_size} gallery images each)"

    def reranked(self, scores: Tensor) -> Ranking:
        """Sort the first K ranks by `scores` (Q, K); the rest keeps its order. Ties stand in gallery order."""
        if scores.ndim != 2 or len(scores) != len(self.order) or scores.shape[1] > self.depth:
            need = f"({len(self.order)}, K <= {self.depth})"
            raise ValueError(f"scores: need shape {need}, got {tuple(scores.shape)}")
        prefix = self.order[:, : scores.shape[1]]
        scores = scores.masked_fill(prefix == NOTHING, -torch.inf)
        prefix = _sorted_by(scores, prefix, last=self.gallery_size)
        return Ranking._trusted(torch.cat([prefix, self.order[:, scores.shape[1] :]], dim=1), self.gallery_size)


@torch.no_grad()
def nearest(
    query: Regions | QuantizedRegions | Tensor,
    gallery: Regions | QuantizedRegions | Tensor,
    depth: int,
    *,
    exclude: Any = None,
) -> Ranking:
    """Stage 1: the `depth` gallery images with the largest pooled cosine of each query, exactly.

    Equal cosines stand in gallery order. Cosines are summed in float64 and rounded to float32, so that a ranking does
    not depend on block sizes or the number of processes.

    Args:
        query, gallery: Q and G images as regions, or their pooled unit vectors (Q, D) and (G, D).
        depth: ranks wanted, M; at most G are given.
        exclude: (Q,) gallery row that is the query itself, or -1; tensor, array or list of whole numbers.

    Returns:
        Ranking of min(depth, G) ranks, `NOTHING` at the end where the gallery is used up.

    Raises:
        ValueError: other shapes, a negative depth, or a row to exclude that the gallery does not have.

    Example:
        >>> ranking = nearest(query, gallery, depth=100)
        >>> Matcher().rerank(query, gallery, ranking.order)
    """
    pooled_q, pooled_g = (side if isinstance(side, Tensor) else side.pooled for side in (query, gallery))
    if pooled_q.ndim != 2 or pooled_g.ndim != 2 or pooled_q.shape[1] != pooled_g.shape[1]:
        got = f"{tuple(pooled_q.shape)} and {tuple(pooled_g.shape)}"
        raise ValueError(f"query, gallery: need pooled vectors (Q, D) and (G, D), got {got}")
    if depth < 0:
        raise ValueError(f"depth: need 0 or more, got {depth}")
    size = len(pooled_g)
    excluded = _excluded(exclude, len(pooled_q), size, pooled_q.device)
    compiled = native.suits(pooled_q, pooled_g)
    block = QUERIES_AT_ONCE[compiled] if compiled else max(1, min(QUERIES_AT_ONCE[False], SCORE_BYTES // (4 * size)))
    orders = []
    for some, own in zip(torch.split(pooled_q, block), torch.split(excluded, block), strict=True):
        if compiled:
            orders.append(native.nearest(some, pooled_g, own, depth))
        else:
            orders.append(rank(_cosines(some, pooled_g), depth, own).order)
    if not orders:
        return Ranking(excluded.new_empty(0, min(depth, size)), size)
    return Ranking._trusted(torch.cat(orders), size)


def _cosines(query: Tensor, gallery: Tensor) -> Tensor:
    """(Q, G) cosines of pooled vectors, summed in float64 and rounded to float32.

    In float32 the dot product of the same two vectors can differ in the last bit with their place in the matrix.
    """
    return (query.double() @ gallery.double().T).to(torch.promote_types(query.dtype, torch.float32))


def _excluded(rows: Any, queries: int, size: int, device: torch.device) -> Tensor:
    """The gallery row of each query itself, (Q,) int64, or `NOTHING`."""
    if rows is None:
        return torch.full((queries,), NOTHING, dtype=torch.int64, device=device)
    rows = torch.as_tensor(rows, device=device)
    if rows.shape != (queries,) or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(f"exclude: need {queries} whole numbers, one a query, got {tuple(rows.shape)} of {rows.dtype}")
    if queries and not bool(((rows >= NOTHING) & (rows < size)).all()):
        raise ValueError(
            f"exclude: need gallery rows 0 to {size - 1}, or -1, got {int(rows.min())} to {int(rows.max())}"
        )
    found: Tensor = rows.to(torch.int64)
    return found


def rank(scores: Tensor, depth: int, excluded: Tensor) -> Ranking:
    """Rank a block of queries by their scores with the whole gallery.

    Only the first `depth` ranks are computed, by partial selection; they are those of the full stable sort.

    Args:
        scores: (Q, G) float, higher is better; changed in place where a row is excluded.
        depth: ranks wanted; at most G are given.
        excluded: (Q,) int64 gallery row that is the query itself, or `NOTHING`.
    """
    gallery = scores.shape[1]
    depth = min(depth, gallery)
    itself = (excluded != NOTHING).nonzero().flatten()
    scores[itself, excluded[itself]] = -torch.inf
    values, order = scores.topk(min(depth + 1, gallery), dim=1)
    order = order[:, :depth]
    if 0 < depth < gallery:
        # topk takes any of those that tie for the last rank: where one was left out, sort that query in full
        for row in (values[:, depth - 1] == values[:, depth]).nonzero().flatten().tolist():
            order[row] = scores[row].sort(descending=True, stable=True).indices[:depth]
    values = scores.gather(1, order)
    order = order.masked_fill(order == excluded.unsqueeze(1), NOTHING)
    return Ranking(_sorted_by(values, order, last=gallery), gallery)


def _sorted_by(scores: Tensor, rows: Tensor, last: int) -> Tensor:
    """Rows (Q, M) by descending score, equal scores by ascending row; `NOTHING` counts as row `last`."""
    found = scores.sort(dim=1, descending=True, stable=True)
    tied = (found.values[:, 1:] == found.values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    order = rows.gather(1, found.indices)
    if len(tied):  # rare, so the second sort costs little
        place = rows[tied].masked_fill(rows[tied] == NOTHING, last).sort(dim=1).indices
        by_row, scores = rows[tied].gather(1, place), scores[tied].gather(1, place)
        order[tied] = by_row.gather(1, scores.sort(dim=1, descending=True, stable=True).indices)
    return order


def following_distances(scores: Tensor, rest: Tensor) -> Tensor:
    """Increasing distances of a re-ranked row, for libraries that sort by distance.

    Args:
        scores: (Q, K) of the re-ranked images, decreasing.
        rest: (Q, M - K) distances of the images that follow, increasing.

    Returns:
        (Q, M): minus the scores, moved so that the last of them equals the first of the rest, then the rest.
    """
    if not rest.shape[1] or not scores.shape[1]:
        return torch.cat([-scores, rest], dim=1)
    return torch.cat([scores[:, -1:] - scores + rest[:, :1], rest], dim=1)
