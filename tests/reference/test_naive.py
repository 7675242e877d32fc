"""Against the method written out plainly: one pair at a time, Python floats, nothing clever."""

from __future__ import annotations

import math

import pytest
import torch

from diml.matching import Regions, match
from laws.strategies import KINDS, pair
from scores import score

EPSILON = 0.2  # at 0.1 the loop needs more than its 3,000 iterations where every region disagrees


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def weights_of(regions, other):
    """relu(<region, the other image as a whole>) / sum, or uniform when there is nothing to share."""
    mass = [max(dot(region, other), 0.0) for region in regions]
    total = sum(mass)
    return [m / total for m in mass] if total > 0 else [1 / len(mass)] * len(mass)


def naive_pair(query, gallery, weights):
    """(plan, structural, pooled) of one pair: lists of region vectors and a pooled vector on each side."""
    (q, pooled_q), (g, pooled_g) = query, gallery
    rows, columns = range(len(q)), range(len(g))
    cosine = [[dot(q[i], g[j]) for j in columns] for i in rows]
    if weights == "uniform":
        weight_q, weight_g = [1 / len(q)] * len(q), [1 / len(g)] * len(g)
    else:
        weight_q, weight_g = weights_of(q, pooled_g), weights_of(g, pooled_q)
    kernel = [[math.exp(-(1 - cosine[i][j]) / EPSILON) for j in columns] for i in rows]
    v = [1.0] * len(g)
    for _ in range(3000):
        u = [weight_q[i] / sum(kernel[i][j] * v[j] for j in columns) for i in rows]
        v = [weight_g[j] / sum(kernel[i][j] * u[i] for i in rows) for j in columns]
    plan = [[u[i] * kernel[i][j] * v[j] for j in columns] for i in rows]
    structural = sum(plan[i][j] * cosine[i][j] for i in rows for j in columns)
    return plan, structural, dot(pooled_q, pooled_g)


def one_by_one(query: Regions, gallery: Regions, weights):
    sides = [list(zip(s.dense.tolist(), s.pooled.tolist(), strict=True)) for s in (query, gallery)]
    return [naive_pair(q, g, weights) for q, g in zip(*sides, strict=True)]


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 4)])
@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
def test_match_is_the_plain_loop(shape, weights):
    sides = [pair(kind, *shape, 4, seed) for seed, kind in enumerate(KINDS)]
    query, gallery = (Regions.cat(side) for side in zip(*sides, strict=True))
    expected = one_by_one(query, gallery, weights)
    for dtype, atol in ((torch.float64, 1e-6), (torch.float32, 2e-4)):
        tight = {torch.float64: 1e-9, torch.float32: 1e-5}[dtype]
        settings = {"epsilon": EPSILON, "tolerance": tight, "max_iterations": 3000}
        found = match(query.to(dtype), gallery.to(dtype), weights=weights, **settings)
        for i, (plan, structural, pooled) in enumerate(expected):
            torch.testing.assert_close(found.plan[i].double(), torch.tensor(plan).double(), rtol=0, atol=atol)
            assert found.structural[i].item() == pytest.approx(structural, abs=atol)
            assert found.pooled[i].item() == pytest.approx(pooled, abs=1e-6)
            assert found.score[i].item() == pytest.approx(structural + pooled, abs=atol)


def test_rerank_is_the_plain_loop():
    query = pair("random", 3, 5, 4, 0)[0]
    gallery = [pair(kind, 3, 5, 4, 9)[1] for kind in ("random", "blank", "similar")]
    rows = [2, 0, 2, 1]
    expected = [sum(one_by_one(query, gallery[row], "cross_correlation")[0][1:]) for row in rows]
    settings = {"epsilon": EPSILON, "tolerance": 1e-9, "max_iterations": 3000}
    scores = score(query, Regions.cat(gallery), torch.tensor([rows]), **settings)
    assert scores[0].tolist() == pytest.approx(expected, abs=1e-6)
