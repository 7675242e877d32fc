"""Laws of partial transport that hold for every input, degenerate ones included; by the kernel and by its twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from diml.matching import Regions, match
from diml.matching.partial import auto_threshold
from diml.matching.transport import exact_transport
from kernel_twin import kernel_or_twin
from laws.strategies import pairs, seeds

WEIGHTS = st.sampled_from(["cross_correlation", "uniform"])
NUMBERS = st.floats(0.01, 0.999)
SHARES = NUMBERS | st.just("auto")

#: Settings under which two routes to one plan end in the same place: float64, smooth, converged to rounding.
TIGHT = {"epsilon": 0.5, "tolerance": 1e-11, "max_iterations": 10_000}
EXACT = {"epsilon": 0}
EITHER = st.sampled_from([TIGHT, EXACT])


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


#: Every law holds for both ways of computing a plan.
way = pytest.fixture(params=["kernel", "twin"], autouse=True)(kernel_or_twin)


@st.composite
def problems(draw, max_regions=9):
    """Generic costs (1, Rq, Rg) in 0..2 and weights in float64, some of them zero."""
    rows, columns = draw(st.tuples(*[st.integers(1, max_regions)] * 2))
    generator = torch.Generator().manual_seed(draw(seeds))
    cost = 2 * torch.rand(1, rows, columns, generator=generator, dtype=torch.float64)
    weights = []
    for count in (rows, columns):
        weight = torch.rand(1, count, generator=generator, dtype=torch.float64)
        weight[0, 1:] *= torch.rand(count - 1, generator=generator) > 0.2
        weights.append(weight / weight.sum(dim=1, keepdim=True))
    return cost, *weights


@given(pairs(dtype=torch.float32), WEIGHTS, SHARES, st.sampled_from([0, 1e-3, 0.05, 1.0]))
def test_everything_is_finite_and_no_region_sends_more_than_it_has(sides, weights, share, epsilon):
    found = match(*sides, weights=weights, share=share, epsilon=epsilon, max_iterations=200)
    for name in ("plan", "structural", "score", "marginal_error", "unmatched_q", "unmatched_g"):
        assert torch.isfinite(getattr(found, name)).all(), name
    assert (found.plan >= 0).all()
    assert (found.plan.sum(dim=2) <= found.weight_q + 1e-6).all()
    assert (found.unmatched_q >= 0).all()
    assert (found.unmatched_g >= 0).all()
    done = found.converged
    assert (found.plan.sum(dim=1) <= found.weight_g + 1e-5)[done].all()
    close(found.plan.sum(dim=2) + found.unmatched_q, found.weight_q, 1e-6)


@given(pairs(), WEIGHTS, NUMBERS, EITHER)
def test_the_share_is_transported_and_the_rest_is_unmatched_on_either_side(sides, weights, share, solver):
    found = match(*sides, weights=weights, share=share, **solver)
    of_share = torch.full((len(found),), share, dtype=torch.float64)
    close(found.plan.sum(dim=(1, 2)), of_share, 1e-6)
    for unmatched in (found.unmatched_q, found.unmatched_g):
        close(unmatched.sum(dim=1), 1 - of_share, 1e-6)
    assert found.converged.all()


@given(pairs(), WEIGHTS, SHARES)
def test_exchanging_the_sides_transposes_the_plan(sides, weights, share):
    query, gallery = sides
    settings = {"weights": weights, "share": share, **TIGHT}
    there, back = match(query, gallery, **settings), match(gallery, query, **settings)
    close(back.plan, there.plan.mT, 1e-6)
    close(back.unmatched_q, there.unmatched_g, 1e-6)
    close(back.score, there.score, 1e-6)


@settings(max_examples=100)
@given(problems(), SHARES)
def test_exchanging_the_sides_transposes_the_exact_plan(problem, share):
    cost, weight_q, weight_g = problem
    there = exact_transport(cost, weight_q, weight_g, share=share)
    back = exact_transport(cost.mT, weight_g, weight_q, share=share)
    close(back.plan.mT, there.plan, 1e-9)
    close(back.unmatched_q, there.unmatched_g, 1e-9)


@given(pairs(kinds=("random",)), WEIGHTS, SHARES, EITHER, st.randoms(use_true_random=False))
def test_permuting_the_regions_permutes_plan_and_rest(sides, weights, share, solver, random):
    orders = [torch.tensor(random.sample(range(s.num_regions), s.num_regions)) for s in sides]
    shuffled = [Regions(s.dense[:, order], s.pooled) for s, order in zip(sides, orders, strict=True)]
    given_weights = tuple(
        torch.rand(1, s.num_regions, generator=torch.Generator().manual_seed(k)).double() + 0.1
        for k, s in enumerate(sides)
    )
    plain = match(*sides, weights=given_weights, share=share, **solver)
    moved_weights = tuple(w[:, order] for w, order in zip(given_weights, orders, strict=True))
    moved = match(*shuffled, weights=moved_weights, share=share, **solver)
    close((moved.plan * moved.cosine).sum(), (plain.plan * plain.cosine).sum(), 1e-6)
    if solver is TIGHT:
        close(moved.plan, plain.plan[:, orders[0]][:, :, orders[1]], 1e-6)
        close(moved.unmatched_q, plain.unmatched_q[:, orders[0]], 1e-6)


@given(pairs(), WEIGHTS, st.lists(NUMBERS, min_size=2, max_size=4))
def test_a_larger_share_costs_more_and_never_less_than_in_proportion(sides, weights, shares):
    """The cheapest mass is moved first: the optimal cost is convex in the share, from 0 at 0."""
    shares, costs = sorted({*shares, 1.0}), []
    for share in shares:
        found = match(*sides, weights=weights, share=share, epsilon=0)
        costs.append((found.plan * (1 - found.cosine)).sum(dim=(1, 2)))
    for (small, cheap), (large, dear) in zip(
        zip(shares, costs, strict=True), zip(shares[1:], costs[1:], strict=True), strict=False
    ):
        assert (dear >= cheap - 1e-9).all()
        assert (dear / large >= cheap / small - 1e-8 / small).all()


@settings(max_examples=60)
@given(problems(), NUMBERS)
def test_the_exact_plan_is_that_of_linear_programming(problem, share):
    cost, weight_q, weight_g = problem
    rows, columns = cost.shape[1:]
    sums = np.concatenate([np.kron(np.eye(rows), np.ones((1, columns))), np.kron(np.ones((1, rows)), np.eye(columns))])
    bounds = torch.cat([weight_q[0], weight_g[0]]).numpy()
    ones = np.ones((1, rows * columns))
    best = linprog(cost.flatten().numpy(), A_ub=sums, b_ub=bounds, A_eq=ones, b_eq=[share], method="highs")
    found = exact_transport(cost, weight_q, weight_g, share=share)
    assert float((found.plan * cost).sum()) == pytest.approx(best.fun, abs=1e-7)


@settings(max_examples=100)
@given(problems(), SHARES)
def test_the_potentials_prove_that_the_plan_is_optimal(problem, share):
    cost, weight_q, weight_g = problem
    found = exact_transport(cost, weight_q, weight_g, share=share)
    reduced = cost - found.potential_q.unsqueeze(2) - found.potential_g.unsqueeze(1)
    assert reduced.min() >= -1e-8
    assert reduced[found.plan > 0].abs().sum() <= 1e-8 * cost.numel()
    sides = ((found.potential_q, found.unmatched_q), (found.potential_g, found.unmatched_g))
    if share != "auto" or float(found.plan.sum()) > 1e-9:
        highest = [float(prices[left > 1e-9].max()) for prices, left in sides if (left > 1e-9).any()]
        for (prices, left), limit in zip(sides, highest, strict=False):
            close(prices[left > 1e-9], torch.full_like(prices[left > 1e-9], limit), 1e-8)
        assert max(highest, default=0) - min(highest, default=0) <= 1e-8
    total = (found.potential_q * found.plan.sum(dim=2)).sum() + (found.potential_g * found.plan.sum(dim=1)).sum()
    close(total, (found.plan * cost).sum(), 1e-8)


@settings(max_examples=100)
@given(problems())
def test_auto_gains_most_above_its_threshold(problem):
    """The plan maximises mass * (cosine - threshold): by its value against linear programming without a given mass."""
    cost, weight_q, weight_g = problem
    rows, columns = cost.shape[1:]
    gain = (1 - cost) - auto_threshold(1 - cost, weight_q, weight_g)
    sums = np.concatenate([np.kron(np.eye(rows), np.ones((1, columns))), np.kron(np.ones((1, rows)), np.eye(columns))])
    bounds = torch.cat([weight_q[0], weight_g[0]]).numpy()
    best = linprog(-gain.flatten().numpy(), A_ub=sums, b_ub=bounds, method="highs")
    found = exact_transport(cost, weight_q, weight_g, share="auto")
    assert float((found.plan * gain).sum()) == pytest.approx(-best.fun, abs=1e-7)
    assert (gain >= -1e-7)[found.plan > 0].all()
