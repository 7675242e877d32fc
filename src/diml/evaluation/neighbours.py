"""Rankings by neighbours: published methods over pooled vectors, with which matchers are compared.

They look at several gallery images together, where a matcher compares one query with one image. Every hit says which
neighbour its place is owed to.

Legend: N images, Q queries, G gallery images, M ranks, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diml.evaluation.split import QueryGallerySplit
from diml.matching import Ranking, nearest
from diml.matching.retrieval import NOTHING

NeighbourMethod = Literal["alpha_qe", "k_reciprocal", "superglobal"]

#: What each method is, for tables.
NAMES: Final[dict[NeighbourMethod, str]] = {
    "alpha_qe": "alpha query expansion",
    "k_reciprocal": "k-reciprocal re-ranking",
    "superglobal": "SuperGlobal re-ranking",
}

#: alpha_qe: neighbours that the query is expanded by, and the power of their cosines (Radenovic et al.).
EXPANSION, POWER = 10, 3.0
#: k_reciprocal: sizes of the neighbourhoods and the part of the plain distance (Zhong et al., Market-1501).
K1, K2, PLAIN_PART = 20, 6, 0.3
#: superglobal: images that are re-ranked, neighbours of each, their weight, images that expand the query (Shao et al.).
RERANKED, NEIGHBOURS, NEIGHBOUR_WEIGHT, EXPANDED_BY = 400, 9, 0.15, 10
#: All cosines are kept in memory.
MOST_IMAGES: Final = 20_000
#: Queries that are refined together.
QUERIES_AT_ONCE: Final = 16


@dataclass(frozen=True, eq=False)
class NeighbourRanking:
    """A ranking, and the neighbour that each hit owes most of its score to.

    Args:
        ranking: of Q queries, M ranks.
        moved_by: (Q, M) int64 image rows; `NOTHING` where no neighbour had a part in it.
    """

    ranking: Ranking
    moved_by: Tensor


@torch.no_grad()
def rank_by_neighbours(
    method: NeighbourMethod, pooled: Tensor, split: QueryGallerySplit, depth: int
) -> NeighbourRanking:
    """Rank the gallery of each query by a method that uses the neighbours of the images.

    An image that is both query and gallery image never retrieves itself and never counts as its own neighbour.

    Args:
        method: `alpha_qe`, the query plus its neighbours weighted by cosine^alpha; `k_reciprocal`, the Jaccard distance
            of reciprocal neighbourhoods; `superglobal`, both sides refined by their neighbours.
        pooled: (N, D) unit vectors.
        split: queries and gallery.
        depth: M.

    Raises:
        ValueError: an unknown method, or more than 20,000 images.

    Source: Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019; Zhong et al.,
    "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017; Shao et al., "Global Features are All
    You Need for Image Retrieval and Reranking", ICCV 2023 (re-ranking only; its pooling is not used).
    """
    methods: dict[str, Callable[[Tensor, QueryGallerySplit, int], NeighbourRanking]] = {
        "alpha_qe": _alpha_qe,
        "k_reciprocal": _k_reciprocal,
        "superglobal": _superglobal,
    }
    if method not in methods:
        raise ValueError(f"method: need one of {get_args(NeighbourMethod)}, got {method!r}")
    if len(pooled) > MOST_IMAGES:
        raise ValueError(
            f"{method}: needs the cosines of all pairs; at most {MOST_IMAGES:,} images, got {len(pooled):,}"
        )
    found = methods[method](pooled.float(), split, split.deeper(depth))
    order, place = split.without_ignored(found.ranking.order, depth)
    moved_by = found.moved_by.gather(1, place).masked_fill(order == NOTHING, NOTHING)
    return NeighbourRanking(Ranking(order, len(split.gallery)), moved_by)


def _alpha_qe(pooled: Tensor, split: QueryGallerySplit, depth: int) -> NeighbourRanking:
    gallery = pooled[split.gallery]
    first = nearest(pooled[split.queries], gallery, min(EXPANSION, len(gallery)), exclude=split.own_row)
    there = first.order != NOTHING
    neighbours = gallery[first.order.clamp_min(0)]
    cosines = torch.einsum("qd,qnd->qn", pooled[split.queries], neighbours)
    weights = cosines.clamp_min(0).pow(POWER) * there
    expanded = pooled[split.queries] + torch.einsum("qn,qnd->qd", weights, neighbours)
    ranking = nearest(torch.nn.functional.normalize(expanded, dim=1), gallery, depth, exclude=split.own_row)
    moved_by = torch.full_like(ranking.order, NOTHING)
    for row in range(len(ranking)):
        hits = gallery[ranking.order[row].clamp_min(0)]
        parts = weights[row] * (hits @ neighbours[row].T)
        parts.masked_fill_(ranking.order[row].unsqueeze(1) == first.order[row], -torch.inf)  # not by itself
        moved_by[row] = split.gallery[first.order[row, parts.argmax(dim=1)].clamp_min(0)]
    return NeighbourRanking(ranking, moved_by.masked_fill(ranking.order == NOTHING, NOTHING))


def _k_reciprocal(pooled: Tensor, split: QueryGallerySplit, depth: int) -> NeighbourRanking:
    used = torch.unique(torch.cat([split.queries, split.gallery]))
    place = torch.full((len(pooled),), NOTHING).scatter(0, used, torch.arange(len(used)))
    vectors = pooled[used]
    distance = (2 - 2 * vectors @ vectors.T).clamp_min(0)
    distance /= distance.amax(dim=1, keepdim=True).clamp_min(1e-12)
    encoded = _reciprocal_encoding(distance.numpy())
    queries, gallery = place[split.queries], place[split.gallery]
    shared = torch.from_numpy(encoded)
    scores = torch.empty(len(queries), len(gallery))
    for row, query in enumerate(queries.tolist()):
        of_query = shared[query]
        neighbours = of_query.nonzero().squeeze(1)
        overlap = torch.minimum(shared[:, neighbours], of_query[neighbours]).sum(dim=1)[gallery]
        jaccard = 1 - overlap / (2 - overlap)
        scores[row] = -(PLAIN_PART * distance[query, gallery] + (1 - PLAIN_PART) * jaccard)
    ranking = _ranked(scores, split, depth)
    moved_by = torch.full_like(ranking.order, NOTHING)
    for row, query in enumerate(queries.tolist()):
        hits = gallery[ranking.order[row].clamp_min(0)]
        neighbours = shared[query].nonzero().squeeze(1)
        common = torch.minimum(shared[hits][:, neighbours], shared[query, neighbours])
        common.masked_fill_((neighbours == query) | (neighbours == hits.unsqueeze(1)), 0)
        most, which = common.max(dim=1)
        moved_by[row] = torch.where(most > 0, used[neighbours[which]], NOTHING)
    return NeighbourRanking(ranking, moved_by.masked_fill(ranking.order == NOTHING, NOTHING))


def _reciprocal_encoding(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, N) weights of the reciprocal neighbours of each image, rows summing to 1."""
    images = len(distance)
    k1, half = min(K1, images - 1), max(1, round(min(K1, images - 1) / 2))
    near = np.argsort(distance, axis=1, kind="stable")[:, : k1 + 1]

    def reciprocal(image: int, size: int) -> NDArray[np.int64]:
        forward = near[image, : size + 1]
        found: NDArray[np.int64] = forward[(near[forward, : size + 1] == image).any(axis=1)]
        return found

    encoded = np.zeros_like(distance)
    for image in range(images):
        own = reciprocal(image, k1)
        expanded = own
        for candidate in own:
            others = reciprocal(int(candidate), half)
            if len(np.intersect1d(others, own)) > 2 / 3 * len(others):
                expanded = np.union1d(expanded, others)
        weights = np.exp(-distance[image, expanded])
        encoded[image, expanded] = weights / weights.sum()
    k2 = min(K2, images)
    return np.stack([encoded[near[image, :k2]].mean(axis=0) for image in range(images)]) if k2 > 1 else encoded


def _superglobal(pooled: Tensor, split: QueryGallerySplit, depth: int) -> NeighbourRanking:
    gallery, count = pooled[split.gallery], min(RERANKED, len(split.gallery))
    plain = nearest(pooled[split.queries], gallery, max(depth, count), exclude=split.own_row)
    scores, moved_by = [], []
    for rows in torch.split(torch.arange(len(split)), QUERIES_AT_ONCE):
        order = plain.order[rows, :count]
        there = order != NOTHING
        candidates = gallery[order.clamp_min(0)]  # (q, count, D)
        within = candidates @ candidates.mT
        within.masked_fill_(~there.unsqueeze(1), -torch.inf).diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        cosines, near = within.topk(min(NEIGHBOURS, count - 1), dim=2)
        weights = NEIGHBOUR_WEIGHT * cosines.clamp_min(0)
        refined, main = candidates.clone(), torch.full(order.shape, NOTHING)
        for row in range(len(rows)):
            refined[row] += torch.einsum("mn,mnd->md", weights[row], candidates[row][near[row].long()])
            if near.shape[2]:
                parts = weights[row] * (candidates[row][near[row]] @ pooled[split.queries[rows[row]]])
                main[row] = near[row].gather(1, parts.argmax(dim=1, keepdim=True)).squeeze(1)
        refined /= 1 + weights.sum(dim=2, keepdim=True)
        query = pooled[split.queries[rows]]
        by_refined = torch.einsum("qd,qmd->qm", query, refined).masked_fill(~there, -torch.inf)
        best = by_refined.topk(min(EXPANDED_BY, count), dim=1).indices
        expanded = torch.maximum(
            query, refined.gather(1, best.unsqueeze(2).expand(-1, -1, refined.shape[2])).amax(dim=1)
        )
        by_expanded = torch.einsum("qd,qmd->qm", torch.nn.functional.normalize(expanded, dim=1), candidates)
        scores.append(((by_refined + by_expanded) / 2).masked_fill(~there, -torch.inf))
        moved_by.append(torch.where(main == NOTHING, NOTHING, order.gather(1, main.clamp_min(0))))
    ranking, by = plain.reranked(torch.cat(scores)), torch.cat(moved_by)
    rising, place = plain.order[:, :count].sort(dim=1)
    at = torch.searchsorted(rising, ranking.order[:, :count].contiguous())  # the same rows in another order
    by = by.gather(1, place.gather(1, at))
    by = torch.cat([by, torch.full((len(by), plain.depth - count), NOTHING)], dim=1)[:, :depth]
    return NeighbourRanking(
        Ranking(ranking.order[:, :depth], ranking.gallery_size),
        torch.where(by == NOTHING, NOTHING, split.gallery[by.clamp_min(0)]),
    )


def _ranked(scores: Tensor, split: QueryGallerySplit, depth: int) -> Ranking:
    """The best gallery rows of scores (Q, G), without the query itself."""
    own = split.own_row != NOTHING
    scores[own.nonzero().squeeze(1), split.own_row[own]] = -torch.inf
    found = scores.sort(dim=1, descending=True, stable=True)
    order = found.indices.masked_fill(found.values.isinf(), NOTHING)[:, :depth]
    return Ranking(order, scores.shape[1])
