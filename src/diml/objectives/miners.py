"""Miners in the form of pytorch-metric-learning (PML), miner(embeddings, labels): the authors' that it lacks.

Triplet miners draw one triplet an anchor (`random` and `intra_random`: N triplets in total) and return (anchors,
positives, negatives) as int64 indices into the batch. They draw on the CPU, so that a seed gives the same triplets on
any device. Their names are those of Roth et al., *Revisiting Training Strategies and Generalization Performance in Deep
Metric Learning*, ICML 2020, and of its code; each class says where ours differs. `MultiSimilarityMiner` finds the pairs
of PML's miner of that name, faster.

Legend: N images, M anchors, D channels, Q and G images on the two sides, P pairs.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from pytorch_metric_learning import miners
from pytorch_metric_learning.distances import BaseDistance, LpDistance
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]
#: Anchor and positive (P,), anchor and negative (P,), as rows of the two sides.
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]

#: Ranges of distance that the modes of `ParametricMiner` draw negatives from.
PARAMETRIC_MODES: Final = {
    "uniform": (0.0, float("inf")),
    "semihards": (0.3, 0.7),
    "hards": (0.0, 0.5),
    "veryhards": (0.0, 0.3),
}


class TripletMiner(BaseMiner):  # type: ignore[misc]  # the library has no types
    """Base of our triplet miners: distances in float64, masks of pairs, anchors that have a positive and a negative.

    Args:
        distance: a distance of PML, not inverted; Euclidean distance between unit vectors when omitted.
        generator: CPU generator for the draws; the global one when omitted.
    """

    def __init__(self, *, distance: BaseDistance | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(distance=LpDistance() if distance is None else distance)
        if self.distance.is_inverted:
            raise ValueError("distance: miners of triplets need a distance, got a similarity; take StructuralDistance")
        self.generator = generator

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Triplets:
        """Called by the library without gradient; see the class."""
        if ref_emb is not embeddings:
            raise ValueError(f"ref_emb: {type(self).__name__} mines within one batch; omit ref_emb")
        a, p, n = self.triplets(embeddings, labels.cpu())
        return a.to(labels.device), p.to(labels.device), n.to(labels.device)

    def triplets(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Draw from embeddings (N, D) and labels (N,) on the CPU; indices on the CPU."""
        positive, negative = _pair_masks(labels)
        anchors = (positive.any(dim=1) & negative.any(dim=1)).nonzero().flatten()
        if len(anchors) == 0:
            return anchors, anchors, anchors
        distances = self.distance(embeddings, embeddings).to("cpu", torch.float64)
        p, n = self.choose(distances[anchors], positive[anchors], negative[anchors], embeddings.shape[1])
        return anchors, p, n

    def choose(self, distances: Tensor, positive: Tensor, negative: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Pick (M,) positives and negatives from (M, N) distances and masks; every row has one of each."""
        raise NotImplementedError


class DistanceWeightedMiner(TripletMiner):
    """Distance-weighted sampling: negatives at evenly distributed distances from the anchor; random positive.

    The weight of a negative is one over the density of its distance d among random points of the unit sphere in D
    dimensions, log weight = (2 - D) log d - (D - 3) / 2 log(1 - d^2 / 4), with d not below `cutoff`; beyond
    `upper_cutoff` a negative has weight zero, unless the anchor has no other (then all have the same weight).

    Weights are relative to the largest weight of *their anchor*. In PML's miner they are relative to the largest of the
    batch: in float32, for D of about 120 or more, those of some anchors can underflow, and these anchors are lost.

    Args:
        cutoff: smaller distances count as this distance.
        upper_cutoff: largest distance of interest (beyond beta + margin, a margin loss is zero), or None. The authors'
            base code has this parameter and does not use it.
        dim: D of the sphere; the width of the embeddings when omitted.
        kwargs: `distance`, `generator`.

    Source: Wu, Manmatha, Smola, Kraehenbuehl, ICCV 2017, section 4.

    Example:
        >>> triplets = DistanceWeightedMiner(cutoff=0.5)(embeddings, labels)
    """

    def __init__(
        self, *, cutoff: float = 0.5, upper_cutoff: float | None = 1.4, dim: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.cutoff, self.upper_cutoff, self.dim = cutoff, upper_cutoff, dim

    def choose(self, distances: Tensor, positive: Tensor, negative: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Random positives; negatives by weight."""
        weights = distance_weights(distances, negative, self.dim or dim, self.cutoff, self.upper_cutoff)
        return draw(positive, self.generator), draw(weights, self.generator)


class SemihardMiner(TripletMiner):
    """A random positive, and a random negative that is farther away by less than `margin`; else any negative.

    Source: Schroff, Kalenichenko, Philbin, CVPR 2015. One triplet an anchor, as in the base code; PML's
    `TripletMarginMiner` returns all such triplets, and none for an anchor that has none.
    """

    def __init__(self, *, margin: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin

    def choose(self, distances: Tensor, positive: Tensor, negative: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Random positives, semi-hard negatives."""
        p = draw(positive, self.generator)
        near = distances.gather(1, p.unsqueeze(1))
        wanted = negative & (distances > near) & (distances < near + self.margin)
        return p, draw(_or_all(wanted, negative), self.generator)


class SoftHardMiner(TripletMiner):
    """A random positive farther than the nearest negative, a random negative nearer than the farthest positive.

    Where there is none, any positive or negative. Source: Roth & Brattoli, as in the base code.
    """

    def choose(self, distances: Tensor, positive: Tensor, negative: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Hard positives and hard negatives."""
        nearest = distances.masked_fill(~negative, float("inf")).amin(dim=1, keepdim=True)
        farthest = distances.masked_fill(~positive, -float("inf")).amax(dim=1, keepdim=True)
        p = draw(_or_all(positive & (distances > nearest), positive), self.generator)
        return p, draw(_or_all(negative & (distances < farthest), negative), self.generator)


class RandomMiner(TripletMiner):
    """N different triplets drawn uniformly among all valid ones (or all, where there are fewer)."""

    def triplets(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Draw numbers of triplets, and decode each into anchor, positive and negative."""
        positive, negative = _pair_masks(labels)
        counts = positive.sum(dim=1) * negative.sum(dim=1)
        ends = counts.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        ranks = torch.randperm(total, generator=self.generator)[: len(labels)]
        anchors = torch.searchsorted(ends, ranks, right=True)
        within = ranks - (ends - counts)[anchors]
        negatives = negative.sum(dim=1)[anchors].clamp(min=1)
        return anchors, _nth(positive, anchors, within // negatives), _nth(negative, anchors, within % negatives)


class IntraRandomMiner(TripletMiner):
    """N triplets within classes: a random class, three of its images drawn with replacement, as in the base code.

    "Negatives" are of the anchor's class: for the part of an embedding that learns differences within classes (DiVA).
    With two images a class, two of the three are the same image.
    """

    def triplets(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Draw classes uniformly, whatever their size."""
        if len(labels) == 0:
            return labels, labels, labels
        members = torch.unique(labels).unsqueeze(1) == labels
        chosen = torch.randint(len(members), (len(labels),), generator=self.generator)
        a, p, n = torch.multinomial(members[chosen].double(), 3, replacement=True, generator=self.generator).T
        return a, p, n


class RandomDistanceMiner(DistanceWeightedMiner):
    """Distance-weighted sampling under shuffled labels: triplets across classes, for shared features (DiVA)."""

    def triplets(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Permute the labels, then mine as `DistanceWeightedMiner`."""
        return super().triplets(embeddings, labels[torch.randperm(len(labels), generator=self.generator)])


class RhoDistanceMiner(DistanceWeightedMiner):
    """Distance-weighted sampling that, with probability `switch`, pushes an anchor away from an image of its own class.

    Such a triplet is (a, a, p): the anchor as its own positive, its positive as negative. It keeps the embedding from
    collapsing onto a few directions (spectral decay rho). Source: Roth et al., ICML 2020, section 5.
    """

    def __init__(self, *, switch: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= switch <= 1:
            raise ValueError(f"switch: need a probability between 0 and 1, got {switch}")
        self.switch = switch

    def triplets(self, embeddings: Tensor, labels: Tensor) -> Triplets:
        """Mine as `DistanceWeightedMiner`, then switch some."""
        a, p, n = super().triplets(embeddings, labels)
        switched = torch.rand(len(a), generator=self.generator) < self.switch
        return a, torch.where(switched, a, p), torch.where(switched, p, n)


class ParametricMiner(TripletMiner):
    """Negatives drawn with the probability that a given distribution assigns to their interval of distance.

    Distances between `lower` and `upper` are divided into `bins` equal intervals; `mode` selects intervals: "uniform"
    all, "semihards" 0.3 to 0.7, "hards" up to 0.5, "veryhards" up to 0.3. An anchor without a negative in a selected
    interval gets any. Our interpretation: the class of the base code lacks its options and cannot run.

    Args:
        mode: one of `PARAMETRIC_MODES`.
        bins, lower, upper: the intervals; distances outside are not selected.
        probabilities: `bins` weights in place of `mode`, for another distribution.
        kwargs: `distance`, `generator`.

    Source: the base code of Roth et al., ICML 2020, and Roth, Milbich, Ommer, PADS, CVPR 2020.
    """

    def __init__(
        self,
        *,
        mode: str = "uniform",
        bins: int = 30,
        lower: float = 0.1,
        upper: float = 1.4,
        probabilities: tuple[float, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if mode not in PARAMETRIC_MODES:
            raise ValueError(f"mode: need one of {tuple(PARAMETRIC_MODES)}, got {mode!r}")
        if bins < 1 or not lower < upper:
            raise ValueError(f"bins, lower, upper: need bins >= 1 and lower < upper, got {bins}, {lower}, {upper}")
        self.edges = torch.linspace(lower, upper, bins + 1, dtype=torch.float64)
        centers = (self.edges[1:] + self.edges[:-1]) / 2
        low, high = PARAMETRIC_MODES[mode]
        self.weights = ((centers >= low) & (centers <= high)).double()
        if probabilities is not None:
            self.weights = torch.tensor(probabilities, dtype=torch.float64)
        if len(self.weights) != bins or not (self.weights >= 0).all():
            raise ValueError(f"probabilities: need {bins} weights, 0 or more, got {probabilities}")

    def choose(self, distances: Tensor, positive: Tensor, negative: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Random positives; negatives by the weight of their interval."""
        interval = torch.bucketize(distances, self.edges, right=True) - 1
        inside = (interval >= 0) & (interval < len(self.weights)) & negative
        weights = self.weights[interval.clamp(0, len(self.weights) - 1)] * inside
        return draw(positive, self.generator), draw(_or_all(weights, negative), self.generator)


class MultiSimilarityMiner(miners.MultiSimilarityMiner):  # type: ignore[misc]
    """Pairs at most `epsilon` from a violation: positives against the hardest negative, negatives against the positive.

    Kept are positives with similarity - epsilon below that of the hardest negative, and negatives with similarity +
    epsilon above that of the hardest positive. These are the pairs of PML's class, which sorts each row although its
    extremes are enough; ours takes half the time. Pairs are ordered by row and column rather than by row and
    similarity, which does not matter to a loss. For distances (not inverted) PML's code runs.

    Source: Wang, Han, Huang, Dong, Scott, CVPR 2019, section 4.

    Example:
        >>> pairs = MultiSimilarityMiner(0.1, distance=StructuralSimilarity(16))(pack_regions(regions), labels)
    """

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Pairs:
        """Called by the library without gradient; see the class."""
        if not self.distance.is_inverted or len(ref_emb) == 0:
            pairs: Pairs = super().mine(embeddings, labels, ref_emb, ref_labels)
            return pairs
        similarity = self.distance(embeddings, ref_emb)  # (Q, G)
        positive = labels.unsqueeze(1) == ref_labels
        negative = ~positive
        if ref_emb is embeddings:
            positive.fill_diagonal_(False)
        weakest = similarity.masked_fill(~positive, float("inf")).amin(dim=1, keepdim=True)
        strongest = similarity.masked_fill(~negative, -float("inf")).amax(dim=1, keepdim=True)
        positive &= similarity - self.epsilon < strongest
        negative &= similarity + self.epsilon > weakest
        (anchors_p, p), (anchors_n, n) = (mask.nonzero(as_tuple=True) for mask in (positive, negative))
        return anchors_p, p, anchors_n, n


def distance_weights(
    distances: Tensor, negative: Tensor, dim: int, cutoff: float, upper_cutoff: float | None
) -> Tensor:
    """Weights (M, N) float64 of the negatives, see `DistanceWeightedMiner`; the largest of each row is 1."""
    d = distances.double().clamp(min=cutoff, max=2 - 1e-6)
    log_weights = (2 - dim) * d.log() - (dim - 3) / 2 * (1 - d.square() / 4).log()
    wanted = negative if upper_cutoff is None else negative & (distances < upper_cutoff)
    log_weights = log_weights.masked_fill(~wanted, -float("inf"))
    largest = log_weights.amax(dim=1, keepdim=True)
    weights = (log_weights - torch.where(largest.isfinite(), largest, 0)).exp()
    return _or_all(weights, negative)


def draw(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One column for each row of non-negative weights or a mask (M, N), M >= 1; no row may be empty."""
    ends = weights.detach().to("cpu", torch.float64).cumsum(dim=1)
    total = ends[:, -1:]
    at = torch.rand(len(ends), 1, dtype=torch.float64, generator=generator) * total
    picked = torch.searchsorted(ends, torch.minimum(at, torch.nextafter(total, torch.zeros_like(total))), right=True)
    return picked.squeeze(1).to(weights.device)


def _pair_masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (N, N) of the positive pairs, without the diagonal, and of the negative pairs."""
    same = labels.unsqueeze(1) == labels
    return same & ~torch.eye(len(labels), dtype=torch.bool), ~same


def _or_all(wanted: Tensor, fallback: Tensor) -> Tensor:
    """Rows of `wanted`, or of `fallback` where a row of `wanted` is empty."""
    return torch.where((wanted > 0).any(dim=1, keepdim=True), wanted, fallback.to(wanted.dtype))


def _nth(mask: Tensor, rows: Tensor, rank: Tensor) -> Tensor:
    """Column of the rank-th True (from 0) in the given rows of a mask."""
    return torch.searchsorted(mask[rows].long().cumsum(dim=1), rank.unsqueeze(1) + 1).squeeze(1)
