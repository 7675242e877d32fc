"""Exact plans against the exact solvers of POT (network simplex) and SciPy (HiGHS, assignment)."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from diml.matching import Regions, exact, match
from diml.matching.transport import exact_transport


def problem(rows, columns, dim, seed, dtype=torch.float64):
    """Costs and weights of a pair of images as matching has them."""
    generator = torch.Generator().manual_seed(seed)
    dense_q = torch.randn(1, rows, dim, generator=generator, dtype=torch.float64)
    dense_g = torch.randn(1, columns, dim, generator=generator, dtype=torch.float64) + dense_q[:, :1]
    query, gallery = (Regions.normalized(dense, dense.mean(dim=1)).to(dtype) for dense in (dense_q, dense_g))
    found = match(query, gallery, epsilon=0)
    return 1 - found.cosine, found.weight_q, found.weight_g


def optimum(cost, weight_q, weight_g):
    """The least cost by POT, of weights that sum to 1 in float64."""
    masses = [weight.double() / weight.double().sum() for weight in (weight_q, weight_g)]
    cost = cost.double().numpy()
    return float((ot.emd(masses[0].numpy(), masses[1].numpy(), cost) * cost).sum())


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (4, 4), (9, 4), (16, 16), (16, 49), (49, 49), (196, 196)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cost_is_that_of_pot(shape, dtype):
    for seed in range(2 if shape[0] > 49 else 10):
        cost, weight_q, weight_g = problem(*shape, dim=8, seed=seed, dtype=dtype)
        found = exact_transport(cost, weight_q, weight_g)
        spent = (found.plan.double() * cost.double()).sum().item()
        limit = 1e-6 if dtype == torch.float32 else 1e-9
        assert spent == pytest.approx(optimum(cost[0], weight_q[0], weight_g[0]), abs=limit)


@pytest.mark.parametrize("seed", range(5))
def test_cost_and_potentials_are_those_of_a_linear_program(seed):
    rows, columns = 5, 7
    cost, weight_q, weight_g = problem(rows, columns, dim=6, seed=seed)
    sums = np.zeros((rows + columns, rows * columns))
    for i in range(rows):
        sums[i, i * columns : (i + 1) * columns] = 1
    for j in range(columns):
        sums[rows + j, j::columns] = 1
    masses = np.concatenate([weight_q[0].numpy(), weight_g[0].numpy()])
    solved = linprog(cost.flatten().numpy(), A_eq=sums, b_eq=masses, method="highs")
    found = exact_transport(cost, weight_q, weight_g)
    assert (found.plan * cost).sum().item() == pytest.approx(solved.fun, abs=1e-9)
    dual = (found.potential_q * weight_q).sum() + (found.potential_g * weight_g).sum()
    assert dual.item() == pytest.approx(solved.fun, abs=1e-9)
    np.testing.assert_allclose(found.plan.flatten().numpy(), solved.x, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 5, 16, 49])
def test_uniform_weights_give_the_assignment_of_scipy(size):
    cost = torch.rand(1, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    rows, columns = linear_sum_assignment(cost[0].numpy())
    uniform = torch.full((1, size), 1 / size, dtype=torch.float64)
    expected = torch.zeros(size, size, dtype=torch.float64)
    expected[rows, columns] = 1 / size
    torch.testing.assert_close(exact_transport(cost, uniform, uniform).plan[0], expected, rtol=0, atol=1e-12)


def test_the_twin_has_the_cost_of_pot():
    for seed in range(5):
        cost, weight_q, weight_g = problem(9, 16, dim=8, seed=seed)
        found = exact.solve(*(part[0].tolist() for part in (cost, weight_q, weight_g)))
        spent = float((torch.tensor(found.plan, dtype=torch.float64) * cost[0]).sum())
        assert spent == pytest.approx(optimum(cost[0], weight_q[0], weight_g[0]), abs=1e-9)
