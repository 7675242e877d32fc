"""Scored pairs of labelled images: the candidates of retrieval, a random sample, and the best score of each query.

Legend: N images, Q queries, K candidates of each, P pairs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from diml.evaluation.split import QueryGallerySplit
from diml.matching import Matcher, Regions
from diml.matching.matcher import ConvergenceWarning
from diml.matching.regions import QuantizedRegions
from diml.matching.retrieval import NOTHING
from diml.progress import ShowProgress, progress_bar

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class LabelledScores:
    """Pairs of images with their scores and classes.

    Args:
        scores: (P,) score of each pair.
        class_q, class_g: (P,) classes of the query and of the gallery image.
        weights: (P,) how many pairs of the population each one stands for; they sum to P.
    """

    scores: Floats
    class_q: Classes
    class_g: Classes
    weights: Floats

    @property
    def same(self) -> NDArray[np.bool_]:
        """(P,) whether both images are of one class."""
        equal: NDArray[np.bool_] = self.class_q == self.class_g
        return equal

    @property
    def prior(self) -> float:
        """Share of same-class pairs in the population."""
        return float(self.weights[self.same].sum() / self.weights.sum())

    def subset(self, chosen: NDArray[np.bool_]) -> LabelledScores:
        """Some of the pairs: (P,) bool."""
        return LabelledScores(self.scores[chosen], self.class_q[chosen], self.class_g[chosen], self.weights[chosen])

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"LabelledScores({len(self):,} pairs, {int(self.same.sum()):,} of one class, prior {self.prior:.4f})"


@dataclass(frozen=True, eq=False, repr=False)
class BestScores:
    """The best score of each query after re-ranking.

    Args:
        scores: (Q,) score of the first hit.
        class_q: (Q,) class of the query.
        class_g: (Q,) class of the hit.
    """

    scores: Floats
    class_q: Classes
    class_g: Classes

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"BestScores({len(self):,} queries)"


@dataclass(frozen=True, eq=False, repr=False)
class ScoredImages:
    """What a calibration is fitted on, and measured on.

    Args:
        candidates: the `depth` nearest gallery images of each query by pooled cosine, without the query itself.
        lists: (Q, K) scores of the same candidates, a row a query; -infinity where the gallery is used up.
        random: random pairs of a query and a gallery image, each kind sampled by itself and weighted back.
        absent: best score of each query in the gallery without its class.
        self_match: median score of an image against itself.
        depth: K.
        images, classes: how many of each.
        absent_gallery: gallery images that a query of `absent` was compared with, on average.
        unconverged: pairs whose plan stopped at max_iterations.
        present: best score of each query whose class is in the gallery.
    """

    candidates: LabelledScores
    lists: Floats
    random: LabelledScores
    absent: BestScores
    self_match: float
    depth: int
    images: int
    classes: int
    absent_gallery: float
    unconverged: int
    present: Floats = field(default_factory=lambda: np.empty(0))

    def __repr__(self) -> str:
        return f"ScoredImages({self.images:,} images, {self.classes:,} classes; {self.candidates!r})"


def score_images(
    regions: Regions | QuantizedRegions,
    labels: ArrayLike,
    *,
    matcher: Matcher,
    queries: ArrayLike | None = None,
    gallery: ArrayLike | None = None,
    cameras: ArrayLike | None = None,
    depth: int = 100,
    random_pairs: int = 20_000,
    seed: int = 0,
    progress: ShowProgress = False,
) -> ScoredImages:
    """Score the pairs of labelled images that a calibration needs.

    Args:
        regions: N images.
        labels: (N,) integer classes.
        matcher: how images are compared.
        queries, gallery: image rows of the two sides; leave-one-out when omitted.
        cameras: (N,) camera of each image: pairs of one class and camera are ignored, as in `evaluate_regions`.
        depth: K, candidates of each query.
        random_pairs: same-class pairs, and different-class pairs, to sample at most.
        seed: of the sample.
        progress: show a progress bar.

    Raises:
        ValueError: fewer than two classes, or no query has a same-class image in the gallery.
        ConvergenceWarning: (a warning) pairs stopped at max_iterations.
    """
    split = QueryGallerySplit.from_labels(
        labels, queries=queries, gallery=gallery, cameras=cameras, images=len(regions)
    )
    classes = np.array(labels, dtype=np.int64)  # a copy: labels may be read-only
    _check_classes(split)
    # K candidates of other classes remain when those of the query's own class are removed
    longest = depth + int(split.relevant_count.max())
    images = split.images(split.nearest(regions.pooled, longest).order)
    left, right, weights = _random_pairs(split, random_pairs, np.random.default_rng(seed))
    selves = torch.unique(split.queries)[:: max(1, len(split) // 1000)]
    with progress_bar(len(split), show=progress, what="matching", unit="queries") as advance:
        found = matcher.score_unique_pairs(
            regions, split.queries, images, progress=lambda share: advance(share * len(split) * 0.9)
        )
        drawn = matcher.score_unique_pairs(regions, left, right.unsqueeze(1))
        itself = matcher.score_unique_pairs(regions, selves, selves.unsqueeze(1))
        advance(len(split) * 0.1)
    unconverged = found.unconverged + drawn.unconverged
    if unconverged:
        warnings.warn(ConvergenceWarning(unconverged), stacklevel=2)
    sides = (classes[left.cpu().numpy()], classes[right.cpu().numpy()])
    return ScoredImages(
        candidates=_candidates(found.scores[:, :depth], images[:, :depth], split, classes),
        lists=_plain(found.scores[:, :depth]),
        random=LabelledScores(_plain(drawn.scores.squeeze(1)), *sides, weights),
        absent=_best_of_others(found.scores, images, split, classes, depth),
        self_match=float(itself.scores.double().median()),
        depth=depth,
        images=len(torch.unique(torch.cat([split.queries, split.gallery]))),
        classes=len(np.unique(classes)),
        absent_gallery=float((len(split.gallery) - _of_own_class(split)).mean()),
        unconverged=unconverged,
        present=_plain(found.scores[:, :depth].max(dim=1).values)[(split.relevant_count > 0).cpu().numpy()],
    )


def best_scores(
    regions: Regions | QuantizedRegions,
    labels: ArrayLike,
    queries: ArrayLike,
    gallery: ArrayLike,
    *,
    matcher: Matcher,
    cameras: ArrayLike | None = None,
    depth: int = 100,
) -> BestScores:
    """The first hit of each query after re-ranking the `depth` nearest, without itself and what it ignores."""
    split = QueryGallerySplit.from_labels(
        labels, queries=queries, gallery=gallery, cameras=cameras, images=len(regions)
    )
    images = split.images(split.nearest(regions.pooled, depth).order)
    scores = matcher.score_unique_pairs(regions, split.queries, images).scores
    return _best(scores, images, split, np.asarray(labels, dtype=np.int64))


def _of_own_class(split: QueryGallerySplit) -> Floats:
    """(Q,) gallery images of each query's class, itself and ignored ones included."""
    rest = (split.own_row != NOTHING).long() if split.ignored_count is None else split.ignored_count
    return _plain(split.relevant_count + rest)


def _check_classes(split: QueryGallerySplit) -> None:
    classes = len(torch.unique(torch.cat([split.query_labels, split.gallery_labels])))
    if classes < 2:
        raise ValueError(f"labels: need images of at least 2 classes to calibrate, got {classes}")
    if not bool((split.relevant_count > 0).any()):
        raise ValueError("labels: no query has another image of its class in the gallery; need classes of 2 or more")


def _candidates(scores: Tensor, images: Tensor, split: QueryGallerySplit, classes: Classes) -> LabelledScores:
    there = (images != NOTHING).cpu().numpy()
    class_q = np.broadcast_to(split.query_labels.cpu().numpy()[:, None], there.shape)[there]
    class_g = classes[images.cpu().numpy()[there]]
    return LabelledScores(_plain(scores)[there], class_q, class_g, np.ones(len(class_q)))


def _best_of_others(
    scores: Tensor, images: Tensor, split: QueryGallerySplit, classes: Classes, depth: int
) -> BestScores:
    """The best of the first `depth` candidates of other classes: the first hit had the query's class been absent."""
    numbers = torch.from_numpy(classes).to(images.device)
    other = (images != NOTHING) & (numbers[images.clamp_min(0)] != split.query_labels.unsqueeze(1))
    kept = other & (other.cumsum(dim=1) <= depth)
    return _best(scores.masked_fill(~kept, -torch.inf), images, split, classes)


def _best(scores: Tensor, images: Tensor, split: QueryGallerySplit, classes: Classes) -> BestScores:
    best, place = scores.max(dim=1)
    hit = images.gather(1, place.unsqueeze(1)).squeeze(1).cpu().numpy()
    known = torch.isfinite(best).cpu().numpy()
    return BestScores(_plain(best)[known], split.query_labels.cpu().numpy()[known], classes[hit[known]])


def _random_pairs(split: QueryGallerySplit, most: int, random: np.random.Generator) -> tuple[Tensor, Tensor, Floats]:
    """Image rows of both sides of random pairs, and the weight of each.

    Same-class pairs are rare, so each kind is sampled by itself; the weights restore its share of all pairs.
    """
    label_q, label_g = split.query_labels.cpu().numpy(), split.gallery_labels.cpu().numpy()
    same_q, same_g = _same_class_pairs(split, label_q, label_g, most, random)
    relevant = int(split.relevant_count.sum())
    others = len(label_q) * len(label_g) - int(_of_own_class(split).sum())
    drawn_q, drawn_g = random.integers(len(label_q), size=2 * most), random.integers(len(label_g), size=2 * most)
    differ = np.flatnonzero(label_q[drawn_q] != label_g[drawn_g])[:most]
    rows_q = torch.from_numpy(np.concatenate([same_q, drawn_q[differ]])).to(split.queries.device)
    rows_g = torch.from_numpy(np.concatenate([same_g, drawn_g[differ]])).to(split.queries.device)
    weights = np.concatenate(
        [np.full(len(same_q), relevant / len(same_q)), np.full(len(differ), others / max(1, len(differ)))]
    )
    return split.queries[rows_q], split.gallery[rows_g], weights * (len(weights) / weights.sum())


def _same_class_pairs(
    split: QueryGallerySplit, label_q: Classes, label_g: Classes, most: int, random: np.random.Generator
) -> tuple[Classes, Classes]:
    """Rows of at most `most` random same-class pairs, without the query itself and what it ignores."""
    order = np.argsort(label_g, kind="stable")
    start = np.searchsorted(label_g[order], label_q, side="left")
    count = np.searchsorted(label_g[order], label_q, side="right") - start
    ends = np.cumsum(count)
    total = int(ends[-1])
    # Twice as many are enough where a query ignores itself only; with cameras, as many more as are ignored.
    enough = 2 * most * max(1, total // max(1, int(split.relevant_count.sum())))
    drawn = np.arange(total) if total <= enough else np.sort(random.choice(total, enough, replace=False))
    rows_q = np.searchsorted(ends, drawn, side="right")
    rows_g = order[start[rows_q] + drawn - (ends[rows_q] - count[rows_q])]
    counts = rows_g != split.own_row.cpu().numpy()[rows_q]
    if split.query_cameras is not None and split.gallery_cameras is not None:
        counts &= split.query_cameras.cpu().numpy()[rows_q] != split.gallery_cameras.cpu().numpy()[rows_g]
    kept = np.flatnonzero(counts)
    if len(kept) > most:
        kept = np.sort(random.choice(kept, most, replace=False))
    return rows_q[kept], rows_g[kept]


def _plain(values: Tensor) -> Floats:
    array: Floats = values.detach().cpu().numpy().astype(np.float64)
    return array
