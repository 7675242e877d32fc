"""Evaluation against loops that follow the definitions, one pair and one place at a time, in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from diml.evaluation.metrics import METRICS, query_metrics
from diml.matching import Regions
from diml.matching.retrieval import NOTHING
from scores import WEIGHT_OF, evaluated

IMAGES, EPSILON = 22, 0.1
LABELS = np.array([7, -3, 7, 10**12, 0, 7, 0, -3, 7, 10**12, 0, 7, -3, 0, 7, 5, 0, -3, 7, 0, 7, -3])  # 5 stands alone
RERANK = (5, 0, 1, 12, 100)

#: Image rows of (queries, gallery); None is all. Not in rising order, so that rows and places differ.
SIDES = {
    "leave-one-out": (None, None),
    "disjoint": ([20, 0, 2, 15, 4, 7, 6], [21, 1, 19, 3, 17, 5, 16, 14, 18, 8, 13, 9, 12]),
    "overlapping": ([8, 2, 15, 3, 9, 10, 11, 21], [12, 10, 0, 9, 8, 6, 5, 1, 4, 2, 15, 14, 16]),
    "part of the gallery queries": ([21, 4, 13], None),
    "part of the images is searched": (None, [20, 4, 9, 1, 0, 17, 12]),
}


def images() -> Regions:
    """Random images that agree a little within their class."""
    generator = torch.Generator().manual_seed(0)
    centres = {label: torch.randn(1, 8, generator=generator, dtype=torch.float64) for label in LABELS.tolist()}
    noise = torch.randn(IMAGES, 4, 8, generator=generator, dtype=torch.float64)
    dense = torch.stack([centres[label] for label in LABELS.tolist()]) + 2 * noise
    return Regions.normalized(dense, dense.mean(dim=1))


# ------------------------------------------------------------------------------------- the definitions as loops


def naive_plan(cost: np.ndarray, weight_q: np.ndarray, weight_g: np.ndarray) -> np.ndarray:
    kernel = np.exp(-cost / EPSILON)
    v = np.ones_like(weight_g)
    for _ in range(100_000):
        u = weight_q / (kernel @ v)
        v = weight_g / (kernel.T @ u)
        plan = u[:, None] * kernel * v
        if np.abs(plan.sum(axis=1) - weight_q).sum() < 1e-11:
            return plan
    raise AssertionError("the naive loop did not converge")


@cache
def naive_scores(query: int, image: int, weights: str) -> dict[str, float]:
    regions = images()
    q, g = regions.dense[query].numpy(), regions.dense[image].numpy()
    pooled_q, pooled_g = regions.pooled[query].numpy(), regions.pooled[image].numpy()
    mass_q, mass_g = np.maximum(q @ pooled_g, 0), np.maximum(g @ pooled_q, 0)
    if weights == "uniform" or not mass_q.any():
        mass_q = np.ones(len(q))
    if weights == "uniform" or not mass_g.any():
        mass_g = np.ones(len(g))
    cosine = q @ g.T
    plan = naive_plan(1 - cosine, mass_q / mass_q.sum(), mass_g / mass_g.sum())
    pooled, structural = float(pooled_q @ pooled_g), float((plan * cosine).sum())
    return {"pooled": pooled, "structural": structural, "both": pooled + structural}


def naive_ranking(query: int, gallery: list[int], k: int, score: str, weights: str) -> list[int]:
    others = [image for image in gallery if image != query]
    plain = sorted(others, key=lambda image: -naive_scores(query, image, weights)["pooled"])
    best = sorted(plain[:k], key=lambda image: -naive_scores(query, image, weights)[score])
    return best + plain[k:]


def naive_metrics(relevant: list[bool], count: int, in_gallery: bool) -> dict[str, float]:
    found = {f"recall@{k}": float(sum(relevant[:k]) > 0) for k in (1, 2, 4, 8)}
    for suffix, r in (("", count), ("_self_counted", count + in_gallery)):
        hits, precisions = 0, 0.0
        for place in range(min(r, len(relevant))):
            if relevant[place]:
                hits += 1
                precisions += hits / (place + 1)
        found[f"r_precision{suffix}"] = hits / r if r else 0.0
        found[f"map@r{suffix}"] = precisions / r if r else 0.0
    return {metric: found[metric] for metric in METRICS}


# ----------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(
    ("score", "weights"),
    [("both", "cross_correlation"), ("both", "uniform"), ("structural", "cross_correlation"), ("pooled", "uniform")],
)
def test_rankings_and_metrics_are_those_of_the_loops(sides, score, weights):
    given_queries, given_gallery = SIDES[sides]
    queries, gallery = given_queries or list(range(IMAGES)), given_gallery or list(range(IMAGES))
    report = evaluated(
        images(),
        LABELS,
        rerank_at=RERANK,
        queries=given_queries,
        gallery=given_gallery,
        structural_weight=WEIGHT_OF[score],
        without_relevant="miss",
        resamples=2,
        weights=weights,
        epsilon=EPSILON,
        tolerance=1e-7,
        max_iterations=10_000,
    )
    assert report.queries.tolist() == queries
    assert report.gallery_size == len(gallery)
    for k in RERANK:
        expected = []
        for query, hits in zip(queries, report.hits[k].tolist(), strict=True):
            ranking = naive_ranking(query, gallery, k, score, weights)
            relevant = [bool(LABELS[image] == LABELS[query]) for image in ranking]
            expected.append(naive_metrics(relevant, sum(relevant), query in gallery))
            assert hits == [*ranking, NOTHING][: len(hits)], (query, k)
        for metric in METRICS:
            values = np.array([row[metric] for row in expected])
            np.testing.assert_allclose(report.per_query[k][metric], values, rtol=0, atol=1e-14)
            assert report.row(k)[metric] == pytest.approx(values.mean(), abs=1e-14)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_metrics_of_random_rankings_are_those_of_the_loops(seed, share):
    generator = np.random.default_rng(seed)
    relevant = generator.random((40, 25)) < share
    count = relevant.sum(axis=1) + generator.integers(3, size=40)  # some stand behind the depth that is known
    inside = generator.random(40) < 0.5
    found = query_metrics(*(torch.from_numpy(part) for part in (relevant, count, inside)))
    for row in range(40):
        expected = naive_metrics(relevant[row].tolist(), int(count[row]), bool(inside[row]))
        assert {name: values[row].item() for name, values in found.items()} == pytest.approx(expected, abs=1e-14)
