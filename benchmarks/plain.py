"""The slow twin: the authors' algorithm, query by query and loss by loss, in straightforward torch.

The benchmarks compare against it. It is written from docs/method.md: matching and stopping rule of the released code,
with defects 1 (weights of the training losses swapped) and 7 (n x n terms) repaired. Matching is batched where the
released code is slower than it needs to be: all candidates of a query, and all pairs of a loss, form one batch. Queries
are ranked one by one and triplets are mined one by one, as in the released code. `tests/reference/test_plain_twin.py`
shows that the numbers are those of the released code.

In evaluation, rows are the regions of the *gallery* image here and columns those of the query; in the losses, rows
belong to the first image. This is the order of the released code; as its solver starts with the rows and stops before
it has converged, the opposite order gives different digits.

Legend: Q queries, G gallery images, K candidates of a query, B pairs, N images of a batch, R regions, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diml.matching import Regions

EPSILON = 0.05

#: The released rule: stop when the mean over the batch of |change of the row scaling| is below this, or at the limit.
STOP_BELOW, MOST_ITERATIONS = 0.1, 100

#: Added to the sum that weights are divided by, and under the square root of a distance.
MASS_EPSILON, ROOT_EPSILON = 1e-5, 1e-6

#: Metrics of the authors' tables.
COLUMNS = ("recall@1", "r_precision_self_counted", "map@r_self_counted")


@torch.no_grad()
def sinkhorn(cost: Tensor, weight_row: Tensor, weight_column: Tensor) -> tuple[Tensor, int]:
    """Plans (B, R, R) for cost (B, R, R) and weights (B, R), all stopped together; and the number of iterations."""
    kernel = torch.exp(-cost / EPSILON)
    turned = kernel.mT.contiguous()
    row, column = torch.ones_like(weight_row), torch.ones_like(weight_column)
    iterations = 0
    for iterations in range(1, MOST_ITERATIONS + 1):  # noqa: B007 - used after the loop
        before = row
        row = weight_row / torch.bmm(kernel, column.unsqueeze(2)).squeeze(2)
        column = weight_column / torch.bmm(turned, row.unsqueeze(2)).squeeze(2)
        if (row - before).abs().mean().item() < STOP_BELOW:
            break
    return row.unsqueeze(2) * kernel * column.unsqueeze(1), iterations


def structural(
    dense_q: Tensor,
    pooled_q: Tensor,
    dense_g: Tensor,
    pooled_g: Tensor,
    weights: Literal["cross_correlation", "uniform"] = "cross_correlation",
) -> tuple[Tensor, int]:
    """Structural similarities (K,) of one query (R, D), (D,) to its candidates (K, R, D), (K, D); and iterations."""
    cosine = dense_g @ dense_q.T  # (K, R, R)
    if weights == "uniform":
        weight_q = weight_g = cosine.new_full(cosine.shape[:2], 1 / cosine.shape[1])
    else:
        weight_q = normalize(pooled_g @ dense_q.T)
        weight_g = normalize(dense_g @ pooled_q)
    plan, iterations = sinkhorn(1 - cosine, weight_g, weight_q)
    return (plan * cosine).sum(dim=(1, 2)), iterations


def normalize(mass: Tensor) -> Tensor:
    """Non-negative part of (..., R), scaled to sum to 1 up to `MASS_EPSILON`."""
    mass = mass.relu()
    return mass / (mass.sum(dim=-1, keepdim=True) + MASS_EPSILON)


def rerank(regions: Regions, query: int, candidates: Tensor, pooled: Tensor) -> tuple[Tensor, int]:
    """Scores (K,) of the gallery rows `candidates` (K,), given their pooled cosines (K,); and iterations."""
    dense_g, pooled_g = regions.dense[candidates], regions.pooled[candidates]
    found, iterations = structural(regions.dense[query], regions.pooled[query], dense_g, pooled_g)
    return pooled + found, iterations


@dataclass(frozen=True, eq=False)
class Evaluation:
    """K -> metric -> value of each query, as fractions; and the mean over the queries of the solver's iterations."""

    per_query: dict[int, dict[str, NDArray[np.float64]]]
    mean_iterations: float

    def row(self, k: int) -> dict[str, float]:
        """Means over the queries."""
        return {name: float(values.mean()) for name, values in self.per_query[k].items()}


@torch.no_grad()
def evaluate(regions: Regions, labels: Tensor, k: int, queries: Tensor | None = None) -> Evaluation:
    """Leave-one-out as in the released code: for each query cosines with all images, a full sort, the best k re-ranked.

    Args:
        regions: N images.
        labels: (N,) int64.
        k: candidates to re-rank; the ranking by pooled cosine is evaluated as well.
        queries: (Q,) image rows; all when omitted.
    """
    sizes = torch.bincount(labels)
    chosen = range(len(regions)) if queries is None else queries.tolist()
    values = torch.empty(2, len(chosen), len(COLUMNS), dtype=torch.float64)
    iterations = 0
    for place, query in enumerate(chosen):
        pooled = regions.pooled @ regions.pooled[query]
        pooled[query] = -torch.inf
        best, order = pooled.sort(descending=True)
        scores, used = rerank(regions, query, order[:k], best[:k])
        iterations += used
        refined = torch.cat([order[:k][scores.argsort(descending=True)], order[k:]])
        positives = int(sizes[labels[query]])  # defect 2: the query counts itself
        for side, ranking in enumerate((order, refined)):
            values[side, place] = metrics(labels[ranking[:positives]] == labels[query])
    table = values.numpy()
    found = {at: {name: table[side, :, i] for i, name in enumerate(COLUMNS)} for side, at in enumerate((0, k))}
    return Evaluation(found, iterations / len(chosen))


def metrics(relevant: Tensor) -> Tensor:
    """R@1, RP and MAP@R of a ranking, from which of its first R images are relevant (R,)."""
    hits = relevant.double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return torch.stack([hits[0], hits.mean(), (precision * hits).mean()])


def expanded(side: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """All pairs of (N, ...) and (M, ...) as two tensors (N * M, ...), which take most of the memory of the losses."""
    pairs = (len(side), len(other))
    left = side.unsqueeze(1).expand(*pairs, *side.shape[1:])
    right = other.unsqueeze(0).expand(*pairs, *other.shape[1:])
    return left.flatten(0, 1), right.flatten(0, 1)


def pair_plans(dense_q: Tensor, pooled_q: Tensor, dense_g: Tensor, pooled_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Plans and cosines (B, R, R) and pooled cosines (B,) of pairs; the plans without gradient."""
    cosine = torch.bmm(dense_q, dense_g.mT)
    with torch.no_grad():
        weight_q = normalize(torch.bmm(dense_q, pooled_g.unsqueeze(2)).squeeze(2))
        weight_g = normalize(torch.bmm(dense_g, pooled_q.unsqueeze(2)).squeeze(2))
        plan, _ = sinkhorn(1 - cosine, weight_q, weight_g)
    return plan, cosine, (pooled_q * pooled_g).sum(dim=1)


def similarity_matrix(regions: Regions) -> Tensor:
    """(N, N) similarities of multi-similarity + DIML, differentiable."""
    dense_q, dense_g = expanded(regions.dense, regions.dense)
    pooled_q, pooled_g = expanded(regions.pooled, regions.pooled)
    plan, cosine, pooled = pair_plans(dense_q, pooled_q, dense_g, pooled_g)
    pair = (plan * (cosine + pooled[:, None, None]) / 2).sum(dim=(1, 2))
    return pair.reshape(len(regions), len(regions))


def multisimilarity_diml(
    regions: Regions, labels: Tensor, *, alpha: float = 2.0, beta: float = 40.0, base: float = 0.5, margin: float = 0.1
) -> Tensor:
    """Multi-similarity loss with its inline mining, mean over the anchors that have a mined pair on either side."""
    similarity = similarity_matrix(regions)
    same = labels.unsqueeze(1) == labels
    positive, negative = same & ~torch.eye(len(labels), dtype=torch.bool), ~same
    with torch.no_grad():
        weakest = similarity.masked_fill(~positive, torch.inf).amin(dim=1, keepdim=True)
        strongest = similarity.masked_fill(~negative, -torch.inf).amax(dim=1, keepdim=True)
        positive &= similarity - margin < strongest
        negative &= similarity + margin > weakest
    near = torch.where(positive, torch.exp(-alpha * (similarity - base)), 0).sum(dim=1).log1p() / alpha
    far = torch.where(negative, torch.exp(beta * (similarity - base)), 0).sum(dim=1).log1p() / beta
    active = positive.any(dim=1) | negative.any(dim=1)
    return (near + far)[active].mean()


def pair_distances(regions: Regions, left: Tensor, right: Tensor) -> Tensor:
    """(B,) distances of margin + DIML between image rows `left` and `right` (B,), differentiable."""
    dense_q, dense_g = regions.dense[left], regions.dense[right]
    plan, cosine, pooled = pair_plans(dense_q, regions.pooled[left], dense_g, regions.pooled[right])
    apart = (2 - 2 * cosine + ROOT_EPSILON).clamp(min=0).sqrt()
    return ((plan * apart).sum(dim=(1, 2)) + (2 - 2 * pooled + ROOT_EPSILON).clamp(min=0).sqrt()) / 2


def distance_weighted(
    pooled: Tensor, labels: Tensor, cutoff: float, upper_cutoff: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Triplets by distance-weighted mining, an anchor at a time as the released code draws them.

    The probabilities are those of `diml.objectives.miners.DistanceWeightedMiner`, and random numbers are drawn in its
    order: with the same seed both draw the same triplets.
    """
    distances = torch.cdist(pooled, pooled).double().numpy()
    classes, dim = labels.numpy(), pooled.shape[1]
    same = [
        np.flatnonzero((classes == own) & (np.arange(len(classes)) != anchor)) for anchor, own in enumerate(classes)
    ]
    anchors = [anchor for anchor, positives in enumerate(same) if 0 < len(positives) < len(classes) - 1]
    near, far = torch.rand(2, len(anchors), dtype=torch.float64, generator=generator).tolist()
    chosen = []
    for anchor, at, beyond in zip(anchors, near, far, strict=True):
        negatives = np.flatnonzero(classes != classes[anchor])
        apart = distances[anchor, negatives]
        clipped = np.clip(apart, cutoff, 2 - 1e-6)
        log_weights = (2 - dim) * np.log(clipped) - (dim - 3) / 2 * np.log(1 - np.square(clipped) / 4)
        wanted = apart < upper_cutoff
        weights = np.exp(log_weights - log_weights[wanted].max()) * wanted if wanted.any() else np.ones(len(negatives))
        ends = weights.cumsum()
        negative = negatives[np.searchsorted(ends, beyond * ends[-1], side="right")]
        chosen.append((anchor, same[anchor][int(at * len(same[anchor]))], negative))
    anchor, positive, negative = torch.from_numpy(np.array(chosen)).T
    return anchor, positive, negative


def margin_diml(
    regions: Regions, triplets: tuple[Tensor, Tensor, Tensor], beta: Tensor, labels: Tensor, margin: float = 0.2
) -> Tensor:
    """Margin loss over mined triplets (anchor, positive, negative), mean over its terms above zero.

    Only the pairs of the triplets are compared, as in the released code; `beta` (C,) is learned for each class.
    """
    anchor, positive, negative = triplets
    boundary = beta[labels[anchor]]
    near = (pair_distances(regions, anchor, positive) - boundary + margin).relu()
    far = (boundary - pair_distances(regions, anchor, negative) + margin).relu()
    violated = (near > 0).sum() + (far > 0).sum()
    return (near.sum() + far.sum()) / violated.clamp(min=1)
