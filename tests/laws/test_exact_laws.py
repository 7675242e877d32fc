"""Laws of exact plans that hold for every input, degenerate ones included; by the kernel and by its twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.matching import match
from diml.matching.transport import exact_transport
from kernel_twin import kernel_or_twin
from laws.strategies import diracs, pairs, permutations, seeds

WEIGHTS = st.sampled_from(["cross_correlation", "uniform"])
KINDS = ("random", "flat", "few values", "duplicates", "copies of regions")

#: The optimum of the perturbed costs is at most this share of their range away from that of the given ones.
PERTURBATION = 1.1e-10


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


#: Every law holds for both ways of computing a plan.
way = pytest.fixture(params=["kernel", "twin"], autouse=True)(kernel_or_twin)


@st.composite
def problems(draw, max_regions=9):
    """Costs (1, Rq, Rg) and weights of any kind in float64: generic, all equal, with ties, with copies of regions."""
    rows, columns = draw(st.tuples(*[st.integers(1, max_regions)] * 2))
    kind, masses = draw(st.sampled_from(KINDS)), draw(st.sampled_from(("any", "uniform", "some zero", "few values")))
    generator = torch.Generator().manual_seed(draw(seeds))

    def numbers(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    cost = 2 * numbers(1, rows, columns)
    if kind == "flat":
        cost = torch.full_like(cost, float(cost[0, 0, 0]))
    elif kind == "few values":
        cost = (cost * 2).round() / 3
    elif kind == "duplicates":
        cost = cost[:, :1].expand(-1, rows, -1).contiguous()
    elif kind == "copies of regions":
        cost = cost[:, torch.arange(rows) // 2]
    weights = []
    for count in (rows, columns):
        weight = torch.ones(1, count, dtype=torch.float64) if masses == "uniform" else numbers(1, count)
        if masses == "some zero":
            weight[0, 1:] *= numbers(count - 1) > 0.5
        if masses == "few values":
            weight = (weight * 3).ceil()
        weights.append(weight / weight.sum(dim=1, keepdim=True))
    return cost, *weights


def reduced_cost(cost, found):
    return cost - found.potential_q.unsqueeze(2) - found.potential_g.unsqueeze(1)


def span(cost):
    return float(cost.max() - cost.min()) or 1.0


@settings(max_examples=200)
@given(problems())
def test_masses_are_non_negative_and_sums_are_the_weights(problem):
    found = exact_transport(*problem)
    assert (found.plan >= 0).all()
    close(found.plan.sum(dim=2), problem[1], 1e-12)
    close(found.plan.sum(dim=1), problem[2], 1e-12)
    assert found.converged.all()
    assert (found.marginal_error <= 1e-12).all()


@settings(max_examples=200)
@given(problems())
def test_entries_are_few(problem):
    cost, weight_q, weight_g = problem
    found = exact_transport(*problem)
    nodes = int((weight_q > 0).sum()) + int((weight_g > 0).sum())
    assert 1 <= int((found.plan > 0).sum()) <= nodes - 1
    assert (found.plan[weight_q.unsqueeze(2).expand_as(cost) == 0] == 0).all()
    assert (found.plan[weight_g.unsqueeze(1).expand_as(cost) == 0] == 0).all()


@settings(max_examples=200)
@given(problems())
def test_the_potentials_prove_that_the_plan_is_optimal(problem):
    cost, weight_q, weight_g = problem
    found = exact_transport(*problem)
    reduced = reduced_cost(cost, found)
    assert reduced.min() >= -PERTURBATION * span(cost) >= -1e-9
    assert reduced[found.plan > 0].abs().max() <= PERTURBATION * span(cost)
    for side, potential in ((weight_q, found.potential_q), (weight_g, found.potential_g)):
        close((side * potential).sum(), (found.plan * cost).sum() / 2, 1e-9)


@settings(max_examples=200)
@given(problems())
def test_exchanging_the_sides_transposes_the_plan(problem):
    cost, weight_q, weight_g = problem
    if cost.shape[1] == cost.shape[2] and torch.equal(cost, cost.mT) and torch.equal(weight_q, weight_g):
        return  # its own transpose: a tie may have no plan that is its own transpose
    there, back = exact_transport(*problem), exact_transport(cost.mT, weight_g, weight_q)
    assert torch.equal(back.plan.mT, there.plan)
    assert torch.equal(back.potential_q, there.potential_g)
    assert torch.equal(back.potential_g, there.potential_q)


@settings(max_examples=100)
@given(st.integers(1, 9), st.integers(1, 9), seeds, st.booleans())
def test_shuffling_the_regions_shuffles_the_plan_unless_there_are_ties(rows, columns, seed, uniform):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(1, rows, columns, generator=generator, dtype=torch.float64)
    weights = [
        torch.rand(1, count, generator=generator, dtype=torch.float64) + uniform * 1e9 for count in (rows, columns)
    ]
    weights = [weight / weight.sum(dim=1, keepdim=True) for weight in weights]
    order_q, order_g = (torch.randperm(count, generator=generator) for count in (rows, columns))
    plain = exact_transport(cost, *weights)
    shuffled = exact_transport(cost[:, order_q][:, :, order_g], weights[0][:, order_q], weights[1][:, order_g])
    close(shuffled.plan, plain.plan[:, order_q][:, :, order_g], 1e-12)


@given(problems(), st.floats(-50, 50), st.floats(1e-3, 1e3))
def test_units_and_origin_of_the_costs_do_not_matter(problem, shift, factor):
    cost, weight_q, weight_g = problem
    plain, moved = exact_transport(*problem), exact_transport(cost * factor + shift, weight_q, weight_g)
    optimum = (plain.plan * cost).sum()
    close((moved.plan * cost).sum(), optimum, 1e-9)
    close((moved.potential_q * weight_q).sum() + (moved.potential_g * weight_g).sum(), optimum * factor + shift, 1e-6)


@given(pairs(dtype=torch.float32), WEIGHTS)
def test_every_pair_of_images_has_an_exact_plan(sides, weights):
    found = match(*sides, weights=weights, epsilon=0)
    for name in ("plan", "structural", "score", "marginal_error", "potential_q", "potential_g"):
        assert torch.isfinite(getattr(found, name)).all(), name
    close(found.plan.sum(dim=2), found.weight_q, 1e-6)
    close(found.plan.sum(dim=1), found.weight_g, 1e-6)
    assert found.converged.all()
    assert ((found.plan > 0).sum(dim=(1, 2)) <= sum(found.plan.shape[1:]) - 1).all()


@given(pairs(), WEIGHTS)
def test_no_other_plan_is_cheaper(sides, weights):
    """The structural similarity of the exact plan is the largest: entropy costs, and so does the product of weights."""
    found = match(*sides, weights=weights, epsilon=0)
    product = (found.weight_q.unsqueeze(2) * found.weight_g.unsqueeze(1) * found.cosine).sum(dim=(1, 2))
    smooth = match(*sides, weights=weights, epsilon=0.3, tolerance=1e-9, max_iterations=5000)
    for other, slack in ((product, 1e-9), (smooth.structural, 1e-8)):
        assert (found.structural >= other - slack).all()


@given(permutations() | diracs())
def test_known_plans(known):
    weights = {"weights": known.weights} if isinstance(known.weights, tuple) else {"weights": "uniform"}
    close(match(known.query, known.gallery, epsilon=0, **weights).plan, known.plan, 1e-12)
