"""Batch selection: a sampler that chooses each batch from a pool of images by their stored embeddings.

Two rules look for diversity: they pick anchors one by one, each of another class (`greedy_coreset`, `d2_coreset`). Two
look for similarity: of several class-balanced candidates they take the one closest to the pool (`frechet_distances`,
`histogram_distances`). The measures come first in this file, the rules next, the sampler `BatchSelection` last.

Legend: N images, C classes, B images of a batch, P images of a pool, S images of a candidate, D channels.

Source: Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning",
ICML 2020, on the sampling of batches; where its released code differs, the docstring says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from diml.data.class_groups import (
    ClassGroups,
    Indices,
    checked_seed,
    draw_balanced,
    epoch_length,
    generator_of,
    usable_classes,
)

Floats = NDArray[np.float64]

#: Bins of the histograms of distances, as in the released code.
HISTOGRAM_BINS: Final = 50
#: The softened greedy rule picks among the points at least as far as this percentile of the distances.
SOFT_PERCENTILE: Final = 97
_NO_EPOCH: Final = -1


# Measures: all in float64, with randomness from a generator passed in.


def squared_distances(points: Floats) -> Floats:
    """(P, P) squared Euclidean distances of the points (P, D); never negative, zero on the diagonal."""
    squares = (points**2).sum(axis=1)
    result: Floats = np.clip(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0, None)
    np.fill_diagonal(result, 0)
    return result


def greedy_coreset(
    points: Floats, labels: Indices, count: int, generator: np.random.Generator, *, softened: bool = False
) -> list[int]:
    """Pick points of distinct classes, the first randomly, each further one the farthest from those picked so far.

    Args:
        points: (P, D) embeddings.
        labels: (P,) class of each; at least `count` distinct ones.
        count: Number of points to pick.
        generator: Draws the first point, and all others when `softened`.
        softened: Pick randomly among the farthest 3 % instead of the farthest.

    Returns:
        `count` rows of `points`.

    Source: farthest-first traversal (Sener and Savarese, "Active Learning for Convolutional Neural Networks: A
    Core-Set Approach", ICLR 2018). The released code picks in one pool and looks the result up in another, and may
    pick a class several times; here the pool is the same and the classes are distinct.
    """
    distances = squared_distances(points)
    picked: list[int] = []
    nearest = np.full(len(points), np.inf)
    free = np.ones(len(points), dtype=bool)
    while len(picked) < count:
        rows = np.flatnonzero(free)
        if not picked:
            row = int(generator.choice(rows))
        elif softened:
            threshold = np.percentile(nearest[rows], SOFT_PERCENTILE)
            row = int(generator.choice(rows[nearest[rows] >= threshold]))
        else:
            row = int(rows[np.argmax(nearest[rows])])
        picked.append(row)
        nearest = np.minimum(nearest, distances[row])
        free &= labels != labels[row]
    return picked


def d2_coreset(
    points: Floats, labels: Indices, count: int, generator: np.random.Generator, *, power: float = 1.0
) -> list[int]:
    """Draw points of distinct classes, far from those picked so far and where the pool is dense.

    The pool is described by a normal distribution. The first point is the nearest to a draw from it; each further one
    is drawn with probability proportional to density(x) * (sum of squared distances to those picked) ** power.

    Args:
        points: (P, D) embeddings.
        labels: (P,) class of each; at least `count` distinct ones.
        count: Number of points to pick.
        generator: Makes all draws.
        power: Weight of distance against density; lambda of the released code.

    Returns:
        `count` rows of `points`.
    """
    mean = points.mean(axis=0)
    factor = np.linalg.cholesky(ridged_covariance(points))
    start = mean + factor @ generator.standard_normal(len(mean))
    picked = [int(np.argmin(((points - start) ** 2).sum(axis=1)))]
    log_density = -0.5 * (np.linalg.solve(factor, (points - mean).T) ** 2).sum(axis=0)
    distances = squared_distances(points)
    reach = distances[picked[0]]
    free = labels != labels[picked[0]]
    while len(picked) < count:
        row = int(generator.choice(len(points), p=d2_probabilities(log_density, reach, free, power)))
        picked.append(row)
        reach = reach + distances[row]
        free &= labels != labels[row]
    return picked


def d2_probabilities(log_density: Floats, reach: Floats, free: NDArray[np.bool_], power: float) -> Floats:
    """(P,) probabilities of the next point, from log densities and sums of squared distances; 0 where not `free`."""
    with np.errstate(divide="ignore"):
        log_reach = power * np.log(reach) if power else np.zeros_like(reach)
    logarithms = np.where(free, log_density + log_reach, -np.inf)
    if not np.isfinite(logarithms).any():  # all free points coincide with the picked ones
        logarithms = np.where(free, 0.0, -np.inf)
    weights = np.exp(logarithms - logarithms.max())
    probabilities: Floats = weights / weights.sum()
    return probabilities


def ridged_covariance(points: Floats) -> Floats:
    """(D, D) covariance with a millionth of its mean variance added, so that a density exists even where P <= D."""
    covariance = np.atleast_2d(np.cov(points.T))
    ridge = 1e-6 * np.trace(covariance) / len(covariance)
    ridged: Floats = covariance + max(ridge, 1e-12) * np.eye(len(covariance))
    return ridged


def frechet_distance(pool: Floats, candidate: Floats) -> float:
    """Fréchet distance of the normal distributions fitted to two sets of points.

    |mean_p - mean_s|^2 + trace(cov_p + cov_s - 2 (cov_p cov_s)^(1/2)), at least 0.

    Args:
        pool: (P, D), P >= 2.
        candidate: (S, D), S >= 2.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982. The trace of
    the root is the sum of the roots of the eigenvalues of X cov_p X' / (S - 1), X the centred candidate: (S, S) and
    symmetric, so that no matrix root is needed.
    """
    covariance = np.atleast_2d(np.cov(pool.T))
    return _frechet(pool.mean(axis=0), covariance, candidate)


def frechet_distances(pool: Floats, candidates: list[Indices]) -> Floats:
    """`frechet_distance` of the pool (P, D) to each of its subsets, given as rows of it."""
    mean, covariance = pool.mean(axis=0), np.atleast_2d(np.cov(pool.T))
    return np.array([_frechet(mean, covariance, pool[rows]) for rows in candidates])


def _frechet(mean: Floats, covariance: Floats, candidate: Floats) -> float:
    offset = candidate.mean(axis=0)
    centred = candidate - offset
    freedom = len(candidate) - 1
    spread = (centred**2).sum() / freedom
    eigenvalues = np.linalg.eigvalsh(centred @ covariance @ centred.T / freedom)
    root = np.sqrt(eigenvalues.clip(min=0)).sum()
    return max(0.0, float(((mean - offset) ** 2).sum() + np.trace(covariance) + spread - 2 * root))


def histogram_distances(pool: Floats, candidates: list[Indices], *, weight: float = 75.0) -> Floats:
    """How far subsets of the pool are from it in pairwise distances, mean and standard deviation.

    |mean_p - mean_s| + |deviation_p - deviation_s| + weight * W, where W is the Wasserstein distance of the two
    histograms of pairwise distances (50 bins between the smallest and the largest distance of the pool).

    Args:
        pool: (P, D), P >= 2.
        candidates: Subsets, as rows of the pool, at least 2 each.
        weight: Weight of the histograms against the moments; 75 in the released code.

    Returns:
        One number per candidate, 0 for the pool itself.

    The released code takes the Wasserstein distance of the bins' heights, which ignores where the bins are; this is
    that of the distributions, in units of distance.
    """
    distances = np.sqrt(squared_distances(pool))
    among_pool = _upper(distances)
    edges = np.histogram_bin_edges(among_pool, HISTOGRAM_BINS, (among_pool.min(), among_pool.max()))
    mean, deviation, heights = pool.mean(axis=0), pool.std(axis=0), _heights(among_pool, edges)
    costs = []
    for rows in candidates:
        subset = pool[rows]
        moments = np.linalg.norm(mean - subset.mean(axis=0)) + np.linalg.norm(deviation - subset.std(axis=0))
        among_subset = _heights(_upper(distances[np.ix_(rows, rows)]), edges)
        gap = np.abs(np.cumsum(heights - among_subset)[:-1]).sum() * (edges[1] - edges[0])
        costs.append(moments + weight * gap)
    return np.array(costs)


def _upper(distances: Floats) -> Floats:
    """Each pair once."""
    return distances[np.triu_indices(len(distances), 1)]


def _heights(distances: Floats, edges: Floats) -> Floats:
    return np.histogram(distances, edges)[0] / len(distances)


# Rules: build a pool of images, measure it, pick a batch.


@dataclass(frozen=True, eq=False)
class Pool:
    """What a rule draws a batch from.

    Attributes:
        usable: The usable classes, with all their images.
        known: The same classes with only those images whose embedding is stored.
        embed: From image indices (P,) to their embeddings (P, D), float64.
        classes: Classes of a batch.
        per_class: Images of each class.
        size: P.
    """

    usable: ClassGroups
    known: ClassGroups
    embed: Callable[[Indices], Floats]
    classes: int
    per_class: int
    size: int

    @cached_property
    def complete_classes(self) -> ClassGroups:
        """The classes with at least `per_class` known images."""
        return self.known.at_least(self.per_class)


class SelectionRule(Protocol):
    """How one batch is chosen."""

    def batch(self, pool: Pool, generator: np.random.Generator) -> Indices | None:
        """Return B image indices, `per_class` of each class, or None where too few embeddings are known."""
        ...


@dataclass(frozen=True, kw_only=True)
class GreedyCoreset:
    """Anchors by farthest-first traversal of the pool, one per class; the other images of each class randomly.

    Attributes:
        softened: Pick anchors randomly among the farthest 3 %.
    """

    softened: bool = False

    def batch(self, pool: Pool, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `greedy_coreset`."""

        def pick(points: Floats, labels: Indices) -> list[int]:
            return greedy_coreset(points, labels, pool.classes, generator, softened=self.softened)

        return _coreset_batch(pool, pick, generator)


@dataclass(frozen=True, kw_only=True)
class D2Coreset:
    """Anchors drawn far from each other and where the pool is dense, one per class; the other images randomly.

    Attributes:
        power: Weight of distance against density, 0 or more.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if self.power < 0:
            raise ValueError(f"power: need 0 or more, got {self.power}")

    def batch(self, pool: Pool, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `d2_coreset`."""

        def pick(points: Floats, labels: Indices) -> list[int]:
            return d2_coreset(points, labels, pool.classes, generator, power=self.power)

        return _coreset_batch(pool, pick, generator)


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """Of several class-balanced batches the one closest to the pool in Fréchet distance.

    Attributes:
        comparisons: Batches to compare, at least 1.
    """

    comparisons: int = 10

    def __post_init__(self) -> None:
        _need_at_least_one("comparisons", self.comparisons)

    def batch(self, pool: Pool, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `frechet_distance`."""
        return _closest_batch(pool, self.comparisons, frechet_distances, generator)


@dataclass(frozen=True, kw_only=True)
class DistanceHistogram:
    """Of several class-balanced batches the one closest to the pool in pairwise distances, mean and deviation.

    Attributes:
        comparisons: Batches to compare, at least 1.
        histogram_weight: Weight of the histogram of distances against mean and deviation.
    """

    comparisons: int = 10
    histogram_weight: float = 75.0

    def __post_init__(self) -> None:
        _need_at_least_one("comparisons", self.comparisons)

    def batch(self, pool: Pool, generator: np.random.Generator) -> Indices | None:
        """Return one batch; see `histogram_distances`."""

        def costs(points: Floats, candidates: list[Indices]) -> Floats:
            return histogram_distances(points, candidates, weight=self.histogram_weight)

        return _closest_batch(pool, self.comparisons, costs, generator)


#: The rules by their names in `build_sampler`.
SELECTION_RULES: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {"d2_coreset": D2Coreset, "greedy_coreset": GreedyCoreset, "disthist": DistanceHistogram, "fid": FrechetDistance}
)


def _coreset_batch(
    pool: Pool, pick: Callable[[Floats, Indices], list[int]], generator: np.random.Generator
) -> Indices | None:
    """Return anchors picked from a random pool, each followed by per_class - 1 other images of its class."""
    drawn = _random_pool(pool, generator)
    if drawn is None:
        return None
    rows, labels = drawn
    picked = pick(pool.embed(rows), labels)
    parts = []
    for anchor, number in zip(rows[picked], labels[picked], strict=True):
        members = pool.usable.members[number]
        others = generator.choice(members[members != anchor], pool.per_class - 1, replace=False)
        parts.append(np.concatenate([[anchor], others]))
    return np.concatenate(parts).astype(np.int64)


def _random_pool(pool: Pool, generator: np.random.Generator) -> tuple[Indices, Indices] | None:
    """Random known images (P,) and their classes (P,); more than P where needed to have enough classes."""
    rows, numbers = pool.known.numbered
    order = generator.permutation(len(rows))
    rows, numbers = rows[order], numbers[order]
    firsts = np.sort(np.unique(numbers, return_index=True)[1])
    if len(firsts) < pool.classes:
        return None
    size = max(pool.size, int(firsts[pool.classes - 1]) + 1)
    return rows[:size], numbers[:size]


def _closest_batch(
    pool: Pool,
    comparisons: int,
    costs: Callable[[Floats, list[Indices]], Floats],
    generator: np.random.Generator,
) -> Indices | None:
    """Return the batch of least cost among several class-balanced batches of a balanced pool."""
    groups = _balanced_pool(pool, generator)
    if groups is None:
        return None
    rows = np.concatenate(groups)
    within = ClassGroups(tuple(np.split(np.arange(len(rows)), np.cumsum([len(group) for group in groups])[:-1])))
    candidates = [draw_balanced(within, pool.classes, pool.per_class, generator) for _ in range(comparisons)]
    return rows[candidates[int(np.argmin(costs(pool.embed(rows), candidates)))]]


def _balanced_pool(pool: Pool, generator: np.random.Generator) -> list[Indices] | None:
    """Known images of as many classes as possible, P in total: in each round `per_class` more of each class."""
    members = pool.complete_classes.members
    if len(members) < pool.classes:
        return None
    wanted = max(pool.size // pool.per_class, pool.classes)
    order = [generator.permutation(members[number]) for number in generator.permutation(len(members))[:wanted]]
    taken = np.zeros(len(order), dtype=np.int64)
    while wanted > 0:
        open_classes = np.flatnonzero(
            [len(member) - count >= pool.per_class for member, count in zip(order, taken, strict=True)]
        )
        if not len(open_classes):
            break
        taken[open_classes[:wanted]] += pool.per_class
        wanted -= len(open_classes)
    return [member[:count] for member, count in zip(order, taken, strict=True) if count]


def _need_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: need at least 1, got {value}")


# The sampler.


class BatchSelection:
    """Batch sampler that chooses the batches of an epoch by a rule over stored embeddings.

    Every batch has `per_class` distinct images of each of B / per_class classes. The batches of an epoch are planned
    at its beginning from the embeddings stored then, and the plan is part of the state: a run that is resumed in the
    middle of an epoch continues with the same plan.

    Images without an embedding come first: as long as there are some that no batch has contained, batches are
    class-balanced and made of those. This stage is skipped if the embeddings of all images are stored before the first
    epoch, as the authors' base code does. An image that never gets an embedding (an unreadable file, for instance) is
    in no pool.

    Args:
        labels: (N,) whole numbers, class of each image.
        rule: How a batch is chosen, one of `SELECTION_RULES`.
        batch_size: B, a multiple of `per_class`.
        per_class: Images of each class in a batch.
        seed: 0 or more.
        batches_per_epoch: Default N // B.
        pool: P, images of the pool that a batch is chosen from, drawn anew for each batch; more where P images do not
            have enough classes.
        project_to: Dimensions of a random projection in which distances are measured; None means no projection.

    Raises:
        ValueError: Sizes do not fit together, or there are too few classes for a batch.

    Warns:
        SmallClassesWarning: Classes were omitted.
        UserWarning: Once, where batches are only class-balanced because too few images got an embedding.

    Source: Roth et al., ICML 2020, and the samplers of its released code.

    Example:
        >>> sampler = BatchSelection([0, 0, 1, 1], FrechetDistance(), batch_size=4)
        >>> [sorted(batch) for batch in sampler.batches(epoch=0)]
        [[0, 1, 2, 3]]
    """

    needs_embeddings = True

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        rule: SelectionRule,
        *,
        batch_size: int,
        per_class: int = 2,
        seed: int = 0,
        batches_per_epoch: int | None = None,
        pool: int = 512,
        project_to: int | None = None,
    ) -> None:
        self._groups = usable_classes(labels, batch_size, per_class)
        self._rule = rule
        self._classes, self._per_class = batch_size // per_class, per_class
        self._seed = checked_seed("seed", seed)
        images = len(np.asarray(labels))
        self._length = epoch_length(images, batch_size, batches_per_epoch)
        if batch_size < 2:
            raise ValueError(f"batch_size: need at least 2 images to measure their spread, got {batch_size}")
        if pool < batch_size:
            raise ValueError(f"pool: need at least batch_size ({batch_size}) images, got {pool}")
        if project_to is not None:
            _need_at_least_one("project_to", project_to)
        self._pool_size, self._project_to = pool, project_to
        self._embeddings = torch.empty(images, 0)
        self._known = torch.zeros(images, dtype=torch.bool)
        self._offered = torch.zeros(images, dtype=torch.bool)
        self._plan = torch.empty(0, batch_size, dtype=torch.int64)
        self._plan_epoch = _NO_EPOCH
        self._warned = False

    def __len__(self) -> int:
        return self._length

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """Return the batches of an epoch; called again for the epoch planned last, the same ones."""
        if checked_seed("epoch", epoch) != self._plan_epoch:
            # One thread: the matrices are small, and sums are then identical in one process and in several.
            with threadpool_limits(limits=1, user_api="blas"):
                self._plan = torch.from_numpy(np.stack(self._planned(generator_of(self._seed, epoch))))
            self._plan_epoch = epoch
        plan: list[list[int]] = self._plan.tolist()
        return iter(plan)

    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Store embeddings.

        Args:
            indices: (B,), int64, images; of repeated ones the last embedding is kept.
            embeddings: (B, D), stored as float32 on the CPU, without gradient; rows that are not finite are skipped.

        Raises:
            ValueError: Shapes do not fit each other or the stored embeddings, or an image is out of range.
        """
        rows, values = indices.detach().cpu().long(), embeddings.detach().float().cpu()
        if values.ndim != 2 or rows.shape != (len(values),):
            got = f"{tuple(indices.shape)} and {tuple(embeddings.shape)}"
            raise ValueError(f"indices, embeddings: need shapes (B,) and (B, D), got {got}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self._known):
            got = f"{int(rows.min())}..{int(rows.max())}"
            raise ValueError(f"indices: need images 0..{len(self._known) - 1}, got {got}")
        if not self._embeddings.shape[1]:
            self._embeddings = torch.zeros(len(self._known), values.shape[1])
        if values.shape[1] != self._embeddings.shape[1]:
            raise ValueError(f"embeddings: need {self._embeddings.shape[1]} channels as before, got {values.shape[1]}")
        finite = torch.isfinite(values).all(dim=1)
        for row, value in zip(rows[finite].tolist(), values[finite], strict=True):
            self._embeddings[row] = value
        self._known[rows[finite]] = True

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the stored embeddings and the plan of the current epoch."""
        return {
            "embeddings": self._embeddings.clone(),
            "known": self._known.clone(),
            "offered": self._offered.clone(),
            "plan": self._plan.clone(),
            "plan_epoch": self._plan_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, which has to come from the same images and batch size.

        Raises:
            ValueError: An entry is missing or of another size.
        """
        mine = self.state_dict()
        if set(state) != set(mine):
            raise ValueError(f"state: need {', '.join(mine)}, got {', '.join(state)}; was the sampler changed?")
        for key, axis in (("embeddings", 0), ("known", 0), ("offered", 0), ("plan", 1)):
            got, need = state[key].shape[axis], mine[key].shape[axis]
            if got != need:
                raise ValueError(
                    f"state: {key} has size {got}, this sampler needs {need}; resume with the same data and batch size"
                )
        self._embeddings, self._known = state["embeddings"].float().cpu().clone(), state["known"].bool().cpu().clone()
        self._offered, self._plan = state["offered"].bool().cpu().clone(), state["plan"].long().cpu().clone()
        self._plan_epoch = int(state["plan_epoch"])

    def _planned(self, generator: np.random.Generator) -> list[Indices]:
        usable, known = self._groups, self._known.numpy()
        unseen = _mask(usable.images, len(known)) & ~known & ~self._offered.numpy()
        first_look = bool(unseen.any())
        plan: list[Indices] = []
        waiting = np.array([unseen[member].sum() for member in usable.members])
        while len(plan) < self._length and waiting.any():
            plan.append(self._unseen_first(unseen, waiting, generator))
        self._offered[torch.from_numpy(np.concatenate([np.empty(0, np.int64), *plan]))] = True
        pool = self._pool(generator)
        while len(plan) < self._length:
            batch = self._rule.batch(pool, generator)
            if batch is None:
                self._warn_balanced(first_look)
                batch = draw_balanced(usable, self._classes, self._per_class, generator)
            plan.append(batch)
        return plan

    def _pool(self, generator: np.random.Generator) -> Pool:
        stored = self._embeddings.numpy()

        def embed(rows: Indices) -> Floats:
            points = stored[rows].astype(np.float64)
            if self._project_to is None:
                return points
            scale = np.sqrt(self._project_to)
            projected: Floats = points @ (generator.standard_normal((points.shape[1], self._project_to)) / scale)
            return projected

        known = self._groups.among(self._known.numpy())
        return Pool(self._groups, known, embed, self._classes, self._per_class, self._pool_size)

    def _unseen_first(self, unseen: NDArray[np.bool_], waiting: Indices, generator: np.random.Generator) -> Indices:
        """Draw a class-balanced batch, unseen images first, and remove them from `unseen` and `waiting`."""
        order = generator.permutation(len(self._groups))
        chosen = order[np.argsort(waiting[order] == 0, kind="stable")][: self._classes]
        parts = []
        for number in chosen:
            shuffled = generator.permutation(self._groups.members[number])
            taken = shuffled[np.argsort(~unseen[shuffled], kind="stable")][: self._per_class]
            waiting[number] -= unseen[taken].sum()
            unseen[taken] = False
            parts.append(taken)
        return np.concatenate(parts)

    def _warn_balanced(self, first_look: bool) -> None:
        if first_look or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"{type(self._rule).__name__}: only {int(self._known.sum())} of {len(self._known)} images have an "
            "embedding, too few to choose from; batches are only class-balanced until update() adds more",
            stacklevel=4,
        )


def _mask(indices: Indices, size: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, dtype=bool)
    mask[indices] = True
    return mask
