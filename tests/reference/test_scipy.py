"""Against SciPy's assignment: with uniform weights and little entropy, matching is assigning."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from diml.matching import Regions, match, sinkhorn


def uniform(size):
    return torch.full((1, size), 1 / size, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 5, 16])
@pytest.mark.parametrize("epsilon", [0.02, 0.001], ids=["plain", "log"])
def test_a_permutation_cost_gives_the_permutation(size, epsilon):
    order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    cost = 1 - torch.eye(size, dtype=torch.float64)[order]
    _, columns = linear_sum_assignment(cost.numpy())
    expected = torch.zeros_like(cost)
    expected[range(size), columns] = 1 / size
    plan = sinkhorn(cost[None], uniform(size), uniform(size), epsilon=epsilon).plan[0]
    torch.testing.assert_close(plan, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_noisy_copies_are_matched_to_their_originals(seed):
    """Region vectors moved a little and shuffled: the optimal assignment is far ahead of the second best."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(1, 9, 16, generator=generator, dtype=torch.float64)
    order = torch.randperm(9, generator=generator)
    noise = torch.randn(dense.shape, generator=generator, dtype=torch.float64)
    query, gallery = (Regions.normalized(d, d.mean(dim=1)) for d in (dense, dense[:, order] + 0.1 * noise))
    found = match(query, gallery, weights="uniform", epsilon=0.02)
    _, columns = linear_sum_assignment(1 - found.cosine[0].numpy())
    assert torch.equal(order[columns], torch.arange(9))
    assert found.plan[0].argmax(dim=1).tolist() == columns.tolist()
    assert found.plan[0, range(9), columns].sum() > 0.999


@pytest.mark.parametrize("seed", range(4))
def test_any_cost_ends_close_to_the_optimal_assignment(seed):
    size, epsilon = 8, 0.005
    cost = torch.rand(1, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, columns = linear_sum_assignment(cost[0].numpy())
    optimum = cost[0, rows, columns].sum().item() / size
    found = sinkhorn(cost, uniform(size), uniform(size), epsilon=epsilon, tolerance=1e-6, max_iterations=20_000)
    slack = found.marginal_error.item()
    assert -slack <= (found.plan * cost).sum().item() - optimum <= epsilon * math.log(size) + slack
    assert slack < 1e-3
