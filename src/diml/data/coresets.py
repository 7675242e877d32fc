"""Measures of the batch-matching samplers on the embeddings of a pool.

Two look for spread: they pick anchors one by one, each of another class (`greedy_coreset`, `d2_coreset`). Two look
for likeness: of several class-balanced candidates the one nearest to the pool is taken (`frechet_distance`,
`histogram_distance`). All work in float64 and take their randomness from a generator handed in.

Legend: P images of the pool, S images of a candidate, D channels.

Source: Roth et al., "Revisiting Training Strategies and Generalization Performance in Deep Metric Learning",
ICML 2020, on the sampling of batches; where its released code differs, the docstring says so.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Bins of the histograms of distances, as in the released code.
HISTOGRAM_BINS = 50

#: Softened greedy choice: among those at least as far as this percentile of the distances.
SOFT_PERCENTILE = 97


def squared_distances(points: Floats) -> Floats:
    """(P, P) squared Euclidean distances of the points (P, D); never negative, zero on the diagonal."""
    squares = (points**2).sum(axis=1)
    result: Floats = np.clip(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0, None)
    np.fill_diagonal(result, 0)
    return result


def greedy_coreset(
    points: Floats, labels: Indices, count: int, generator: np.random.Generator, *, softened: bool = False
) -> list[int]:
    """Pick points of distinct classes, each the farthest from those picked so far; the first by chance.

    Args:
        points: (P, D) embeddings.
        labels: (P,) class of each; at least `count` distinct ones.
        count: Points to pick.
        generator: Of the first point, and of all others when `softened`.
        softened: Pick by chance among the farthest 3 % in place of the farthest.

    Returns:
        `count` rows of `points`.

    Source: farthest-first traversal (Sener and Savarese, "Active Learning for Convolutional Neural Networks: A
    Core-Set Approach", ICLR 2018). The released code picks in one pool and looks the result up in another, and may
    pick a class several times; here the pool is one and the classes distinct.
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
            least = np.percentile(nearest[rows], SOFT_PERCENTILE)
            row = int(generator.choice(rows[nearest[rows] >= least]))
        else:
            row = int(rows[np.argmax(nearest[rows])])
        picked.append(row)
        nearest = np.minimum(nearest, distances[row])
        free &= labels != labels[row]
    return picked


def d2_coreset(
    points: Floats, labels: Indices, count: int, generator: np.random.Generator, *, power: float = 1.0
) -> list[int]:
    """Pick points of distinct classes by chance, far from those picked so far and where the pool is dense.

    The pool is described by a normal distribution. The first point is the nearest to a draw from it; each further one
    is drawn with probability proportional to density(x) * (sum of squared distances to those picked) ** power.

    Args:
        points: (P, D) embeddings.
        labels: (P,) class of each; at least `count` distinct ones.
        count: Points to pick.
        generator: Of all draws.
        power: Weight of distance against density; the released code's lambda.

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
    """Fréchet distance of the normal distributions that fit two sets of points.

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
    """How far subsets of the pool are from it in their distances, mean and deviation.

    |mean_p - mean_s| + |deviation_p - deviation_s| + weight * W, where W is the Wasserstein distance of the two
    histograms of pairwise distances (50 bins between the least and the greatest distance of the pool).

    Args:
        pool: (P, D), P >= 2.
        candidates: Subsets, as rows of the pool, at least 2 each.
        weight: Of the histograms against the moments; the released code has 75.

    Returns:
        One number a candidate, 0 for the pool itself.

    The released code takes the Wasserstein distance of the bins' heights, which is blind to where the bins lie; here
    it is that of the distributions, in units of distance.
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
