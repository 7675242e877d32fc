"""The plans that benchmarks/sharpening.py compares have the properties of their names."""

from __future__ import annotations

import dataclasses
import warnings
from functools import partial

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import plans
import regimes
import sharpening
from diml.matching import Matcher

PAIRS = 6


@pytest.fixture(scope="module")
def compared():
    """Pairs of nine regions with their cosines and weights."""
    regions = regimes.generate("hard", images=2 * PAIRS, classes=2, regions=9, dim=8).regions
    return sharpening.compared(regions[:PAIRS], regions[PAIRS:])


@pytest.fixture(scope="module")
def uniform():
    """The same with uniform weights, where the exact plan is an assignment."""
    regions = regimes.generate("hard", images=2 * PAIRS, classes=2, regions=9, dim=8, seed=1).regions
    return Matcher(weights="uniform", max_iterations=1).match(regions[:PAIRS], regions[PAIRS:])


def cost(plan, found):
    return (plan.double() * (1 - found.cosine.double())).sum(dim=(1, 2))


@pytest.mark.parametrize("epsilon", [0.05, 0.02, 0.005])
def test_annealed_or_direct_the_plan_is_that_of_the_method(epsilon, compared):
    wanted = plans.entropic(compared, epsilon).double()
    for epsilons in ((epsilon,), plans.halved(epsilon)):
        made = plans.annealed(compared, epsilons)
        assert made == pytest.approx(wanted, abs=1e-4)
        assert made.sum(dim=2) == pytest.approx(compared.weight_q.double(), abs=2 * plans.TOLERANCE)


def test_regions_without_mass_send_and_receive_nothing(compared):
    weights = [weight.clone() for weight in (compared.weight_q, compared.weight_g)]
    for weight in weights:
        weight[:, 2] = 0
        weight /= weight.sum(dim=1, keepdim=True)
    lacking = dataclasses.replace(compared, weight_q=weights[0], weight_g=weights[1])
    made = plans.annealed(lacking, plans.halved(0.01))
    assert made.isfinite().all()
    assert not made[:, 2].any()
    assert not made[:, :, 2].any()


def test_epsilons_halve_from_that_of_the_score_to_the_last():
    assert plans.halved(0.0125) == (0.05, 0.025, 0.0125)
    assert plans.halved(0.02) == (0.05, 0.025, 0.02)


def test_without_regularisation_uniform_weights_give_the_best_assignment(uniform):
    pytest.importorskip("ot")
    made = plans.by_pot(plans.exact, uniform)
    for plan, cosine in zip(made, uniform.cosine.numpy(), strict=True):
        rows, columns = linear_sum_assignment(-cosine)
        assert (plan * 9).round().long().argmax(dim=1)[rows].tolist() == columns.tolist()
    assert (made > 1e-9).sum(dim=2).max() == 1


def test_quadratic_plans_are_sparse_and_cost_more_the_stronger(compared):
    pytest.importorskip("ot")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of an option that POT passes to SciPy
        weak, strong = (plans.by_pot(partial(plans.smooth, strength=s), compared) for s in (0.3, 3.0))
    for made in (weak, strong):
        assert made.sum(dim=2) == pytest.approx(compared.weight_q.double(), abs=1e-3)
        assert (made == 0).any()
    best = cost(plans.by_pot(plans.exact, compared), compared)
    assert (best <= cost(weak, compared) + 1e-3).all()
    assert (cost(weak, compared) < cost(strong, compared)).all()
    assert (weak > 0).sum() < (strong > 0).sum()


def test_map_at_r_of_the_plan_that_scores_is_that_of_an_evaluation():
    from diml.evaluation import evaluate_regions

    found = regimes.generate("hard", images=30, classes=3, regions=4, dim=8)
    queries = torch.tensor([3, 11, 20, 25])
    order, pooled = regimes.candidates(found.regions, queries, 29)
    search = sharpening.Search(found.regions, found.labels, queries, order, pooled)
    report = evaluate_regions(found.regions, found.labels, rerank_at=(0, 12), queries=queries)
    usual = sharpening.map_at_r(search, plans.WAYS["plan that scores"], 4, 12)
    assert usual.tolist() == pytest.approx(report.per_query[12]["map@r"].tolist())
    assert sharpening.of_ranking(search, order).tolist() == pytest.approx(report.per_query[0]["map@r"].tolist())


def test_a_way_whose_package_is_missing_names_it():
    assert plans.Way(plans.annealed, "no_such_solver").missing() == "no_such_solver is not installed"
    assert plans.Way(plans.annealed).missing() is None
