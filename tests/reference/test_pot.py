"""Against POT: its entropic solver for the same plan, its exact solver for the limit of little entropy."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch

from diml.matching import match, sinkhorn
from laws.strategies import pair


def problem(rows, columns, seed=0):
    """Costs of images with positive weights, float64, B = 1."""
    query, gallery = pair("random", rows, columns, 6, seed)
    cost = 1 - match(query, gallery).cosine
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.rand(1, n, generator=generator, dtype=torch.float64) + 0.05 for n in (rows, columns)]
    return [cost, *(weight / weight.sum() for weight in weights)]


def numpy(*parts):
    return [part[0].numpy() for part in parts]


@pytest.mark.parametrize("shape", [(1, 6), (4, 4), (9, 16), (49, 16)])
@pytest.mark.parametrize("epsilon", [0.05, 0.2, 1.0])
def test_the_plan_is_that_of_pot(shape, epsilon):
    cost, weight_q, weight_g = problem(*shape)
    settings = {"epsilon": epsilon, "tolerance": 1e-10, "max_iterations": 50_000}
    found = sinkhorn(cost, weight_q, weight_g, **settings)
    solver = {"method": "sinkhorn_log", "stopThr": 1e-10, "numItermax": 50_000}
    expected = ot.sinkhorn(*numpy(weight_q, weight_g, cost), epsilon, **solver)
    np.testing.assert_allclose(found.plan[0].numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["random", "similar", "basis", "duplicates", "opposite"])
def test_scores_of_images_are_those_of_pot(kind):
    query, gallery = pair(kind, 9, 6, 5, 1)
    found = match(query, gallery, epsilon=0.3, tolerance=1e-9, max_iterations=20_000)
    weight_q, weight_g, cosine = numpy(found.weight_q, found.weight_g, found.cosine)
    sends, receives = weight_q > 0, weight_g > 0  # POT takes the logarithm of the weights
    cosine = cosine[sends][:, receives]
    solver = {"method": "sinkhorn_log", "stopThr": 1e-9, "numItermax": 20_000}
    plan = ot.sinkhorn(weight_q[sends], weight_g[receives], 1 - cosine, 0.3, **solver)
    assert found.structural.item() == pytest.approx((plan * cosine).sum(), abs=1e-6)


def entropy(weights):
    return -(weights * np.log(weights)).sum()


@pytest.mark.parametrize("seed", range(4))
def test_with_little_entropy_the_cost_nears_the_exact_optimum(seed):
    """An entropic plan costs more than the optimum, by at most epsilon times the smaller entropy of the weights.

    Its objective is the least, so cost - epsilon H <= optimum - epsilon H*; and H - H* is no more than the entropy
    of both sides together less that of the larger. The error left in the rows moves the cost (0 to 2) by twice it.
    """
    cost, weight_q, weight_g = problem(9, 12, seed)
    optimum = (ot.emd(*numpy(weight_q, weight_g, cost)) * cost[0].numpy()).sum()
    gaps = []
    for epsilon in (0.5, 0.05, 0.005):
        found = sinkhorn(cost, weight_q, weight_g, epsilon=epsilon, tolerance=1e-6, max_iterations=20_000)
        slack = 2 * found.marginal_error.item()
        gaps.append((found.plan * cost).sum().item() - optimum)
        assert -slack <= gaps[-1] <= epsilon * min(map(entropy, numpy(weight_q, weight_g))) + slack
        assert slack < 1e-4
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 0.01
