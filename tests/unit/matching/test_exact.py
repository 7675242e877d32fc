"""Exact plans, epsilon = 0: where they are used, the kernel against its twin, types, degenerate inputs, errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.matching import Matcher, Regions, TransportPlan, exact, match, matcher, native
from diml.matching.transport import exact_transport
from diml.objectives import StructuralDistance, StructuralSimilarity
from kernel_twin import assert_scores_stand_alone, assert_trains_as_torch, by_twin, images, needs_kernel

EXACT = Matcher(epsilon=0)


def problem(batch, rows, columns, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cost = 2 * torch.rand(batch, rows, columns, generator=generator, dtype=torch.float64)
    weights = [torch.rand(batch, n, generator=generator, dtype=torch.float64).square() for n in (rows, columns)]
    return [part.to(dtype) for part in (cost, *(weight / weight.sum(dim=1, keepdim=True) for weight in weights))]


# ------------------------------------------------------------------------------------------- kernel and twin


@needs_kernel
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 5), (5, 1), (4, 4), (9, 4), (7, 23), (16, 16), (17, 15), (49, 49)], ids=str
)
def test_the_kernel_takes_the_steps_of_the_twin(instruction_set, shape):
    parts = problem(4, *shape)
    found, twin = exact_transport(*parts), by_twin(lambda: exact_transport(*parts))
    for name in ("plan", "potential_q", "potential_g", "marginal_error"):
        torch.testing.assert_close(getattr(found, name), getattr(twin, name), rtol=0, atol=1e-12)
    assert torch.equal(found.iterations, twin.iterations)


@needs_kernel
@settings(max_examples=40)
@given(
    regions_q=st.integers(1, 20) | st.just(49),
    regions_g=st.integers(1, 20) | st.just(49),
    dim=st.integers(8, 40),
    stored=st.sampled_from([torch.float32, torch.float16, torch.int16, torch.int8]),
    weights=st.sampled_from(["cross_correlation", "uniform"]),
    seed=st.integers(0, 1000),
)
def test_scores_of_the_kernel_are_those_of_torch(regions_q, regions_g, dim, stored, weights, seed):
    ours = Matcher(epsilon=0, weights=weights)
    query, gallery = images(3, regions_q, dim, seed), images(11, regions_g, dim, seed + 1)
    gallery = gallery.to(stored) if stored.is_floating_point else gallery.quantized(stored)
    rows = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(seed))
    first = matcher._score_native(ours, query, gallery, torch.arange(3).repeat_interleave(9), rows.flatten())
    second = matcher._score_torch(ours, query, gallery, rows)
    torch.testing.assert_close(first.scores.view(3, 9), second.scores, rtol=0, atol=2e-6)
    assert first.converged.all()
    assert second.converged.all()


@needs_kernel
def test_plans_of_the_fused_kernel_are_those_of_exact_transport(instruction_set):
    query, gallery = images(20, 16, seed=1), images(20, 25, seed=2)
    packed = [torch.cat([side.dense, side.pooled.unsqueeze(1)], dim=1) for side in (query, gallery)]
    row = torch.arange(20)
    solver = native.SolverSettings(**EXACT.solver)
    found = native.compare(*packed, native.PairIndices(row, row), solver, uniform=False, keep_cosine=True)
    expected = EXACT.match(query, gallery)
    torch.testing.assert_close(found.plan, expected.plan, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.scores.structural, expected.structural, rtol=0, atol=1e-6)
    assert torch.equal(found.scores.iterations.long(), expected.iterations)
    error = (found.plan.double().sum(dim=1) - expected.weight_g).abs().sum(dim=1)
    torch.testing.assert_close(found.scores.marginal_error.double(), error, rtol=0, atol=1e-6)
    assert found.scores.converged.all()
    assert not found.scores.too_wide.any()


@needs_kernel
def test_the_entropic_solver_of_given_costs_makes_no_exact_plans():
    given = problem(1, 3, 3, dtype=torch.float32)
    with pytest.raises(ValueError, match="solve_exact"):
        native.solve(*given, native.SolverSettings(**EXACT.solver))


# ------------------------------------------------------------------------------------------------- where it is used


def test_small_epsilon_approaches_the_exact_score():
    query, gallery = images(6, 9, dtype=torch.float64), images(6, 9, seed=1, dtype=torch.float64)
    exact_score = EXACT.match(query, gallery).score
    gaps = []
    for epsilon in (0.05, 0.01, 0.002, 0.0004):
        smooth = Matcher(epsilon=epsilon, tolerance=1e-7, max_iterations=50_000).match(query, gallery)
        gaps.append((exact_score - smooth.score).abs().max().item())
    assert all(later < earlier for earlier, later in itertools.pairwise(gaps))
    assert gaps[-1] < 1e-4


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int16, torch.int8])
def test_match_score_rerank_and_unique_pairs_agree(stored):
    given = images(7)
    gallery = given.to(stored) if stored.is_floating_point else given.quantized(stored)
    rows = torch.arange(7).expand(7, 7)
    scores = EXACT.score(given, gallery, rows)
    limit = {torch.float32: 1e-6, torch.float16: 2e-3, torch.int16: 2e-3, torch.int8: 3e-2}[stored]
    for i in range(7):
        torch.testing.assert_close(scores[i], EXACT.match(given[i : i + 1], given).score, rtol=0, atol=limit)
    ranking = EXACT.rerank(given, gallery, rows)
    assert torch.equal(ranking.scores, scores.sort(dim=1, descending=True).values)
    assert ranking.order[:, 0].tolist() == list(range(7))  # every image is most like itself
    unique = EXACT.score_unique_pairs(gallery, torch.arange(7), rows)
    torch.testing.assert_close(unique.scores, scores, rtol=0, atol=limit)
    assert unique.unconverged == 0


def test_it_is_the_best_plan_and_sums_up_in_the_ledger():
    query, gallery = images(5), images(5, seed=1)
    found, smooth = EXACT.match(query, gallery), Matcher().match(query, gallery)
    assert (found.structural > smooth.structural).all()
    assert found.converged.all()
    ledger = found.ledger(2)
    assert ledger.score == pytest.approx(float(found.score[2]), abs=1e-6)
    assert int((ledger.plan > 0).sum()) <= 31


def test_an_image_is_matched_with_itself_region_by_region():
    given = images(3)
    for weights in ("cross_correlation", "uniform"):
        plan = Matcher(epsilon=0, weights=weights).match(given, given).plan
        assert torch.equal(plan, torch.diag_embed(plan.diagonal(dim1=1, dim2=2)))


@pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])
@pytest.mark.parametrize("structural_weight", [1.0, 4.0])
def test_training_values_and_gradients_are_those_of_torch(kind, structural_weight):
    """The plan is a constant of the gradient, by the kernel and in torch."""
    assert_trains_as_torch(kind(9, Matcher(epsilon=0, structural_weight=structural_weight)))


def test_given_weights_are_used():
    query, gallery = images(2, 3), images(2, 4, seed=1)
    weights = torch.tensor([[1.0, 0, 1]]), torch.tensor([[0.0, 1, 1, 0]])
    plan = EXACT.match(query, gallery, weights=weights).plan
    torch.testing.assert_close(plan.sum(dim=2), torch.tensor([[0.5, 0, 0.5]]).expand(2, 3))
    torch.testing.assert_close(plan.sum(dim=1), torch.tensor([[0.0, 0.5, 0.5, 0]]).expand(2, 4))
    scores = EXACT.score(query, gallery, [[0, 1], [1, 0]], weights=weights)
    torch.testing.assert_close(scores[:, 0], EXACT.match(query, gallery, weights=weights).score)


def test_tolerance_and_iterations_do_not_matter():
    query, gallery = images(4), images(4, seed=1)
    plain = EXACT.match(query, gallery)
    other = Matcher(epsilon=0, tolerance=1e-12, max_iterations=1).match(query, gallery)
    assert torch.equal(plain.plan, other.plan)
    assert other.converged.all()
    rows = torch.arange(4).expand(4, 4)
    assert torch.equal(EXACT.score(query, gallery, rows), other.matcher.score(query, gallery, rows))  # no warning


def test_the_setting_survives_saving():
    assert Matcher.from_dict(Matcher(epsilon=0).to_dict()) == EXACT
    assert Matcher.from_dict({"epsilon": "0"}) == EXACT


# ------------------------------------------------------------------------------------------------- types and inputs


@pytest.mark.parametrize(
    ("dtype", "returned"),
    [(torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_types(dtype, returned):
    parts = [part.to(dtype).requires_grad_() for part in problem(3, 4, 6)]
    found = exact_transport(*parts)
    assert isinstance(found, TransportPlan)
    assert found.plan.dtype == found.marginal_error.dtype == returned
    assert found.potential_q.dtype == found.potential_g.dtype == torch.float64
    assert (found.iterations.dtype, found.converged.dtype) == (torch.int64, torch.bool)
    assert (found.potential_q.shape, found.potential_g.shape) == ((3, 4), (3, 6))
    assert not found.plan.requires_grad


@pytest.mark.parametrize("way", ["kernel", "twin"])
def test_no_problems_give_no_plans(way, request):
    if way == "twin":
        request.getfixturevalue("without_kernel")
    found = exact_transport(torch.zeros(0, 4, 5), torch.zeros(0, 4), torch.zeros(0, 5))
    assert found.plan.shape == (0, 4, 5)
    assert found.converged.shape == found.iterations.shape == (0,)


def test_a_problem_does_not_depend_on_its_companions():
    cost, weight_q, weight_g = problem(40, 9, 9)
    together = exact_transport(cost, weight_q, weight_g)
    for i in range(0, 40, 7):
        alone = exact_transport(cost[i : i + 1], weight_q[i : i + 1], weight_g[i : i + 1])
        assert torch.equal(alone.plan[0], together.plan[i])
        assert torch.equal(alone.potential_q[0], together.potential_q[i])


@needs_kernel
def test_a_score_does_not_depend_on_its_companions_or_the_number_of_threads():
    assert_scores_stand_alone(EXACT)


@pytest.mark.parametrize("tiny", [0.0, 1e-300, 1e-42, 1e-14, 1e-12])
@pytest.mark.parametrize("way", ["kernel", "twin"])
def test_tiny_weights(tiny, way, request):
    if way == "twin":
        request.getfixturevalue("without_kernel")
    cost = 2 * (1 - torch.eye(3, dtype=torch.float64))[None]
    weight = torch.tensor([[1.0, tiny, tiny]], dtype=torch.float64)
    weight = weight / weight.sum()
    for parts in ((cost, weight, weight.flip(1)), (2 - cost, weight, weight), (cost, weight.flip(1), weight)):
        found = exact_transport(*parts)
        torch.testing.assert_close(found.plan.sum(dim=2), parts[1], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.plan.sum(dim=1), parts[2], rtol=0, atol=1e-12)
        reduced = parts[0] - found.potential_q.unsqueeze(2) - found.potential_g.unsqueeze(1)
        assert reduced.min() > -1e-9


@pytest.mark.parametrize("size", [1, 4, 16, 49])
def test_blank_images_are_matched_region_by_region(size):
    blank = Regions(torch.zeros(2, size, 8), torch.zeros(2, 8))
    found = EXACT.match(blank, blank)
    torch.testing.assert_close(found.plan, torch.eye(size).expand(2, size, size) / size)
    assert (EXACT.score(blank, blank, [[0, 1], [1, 0]]) == 0).all()


@pytest.mark.parametrize("way", ["kernel", "twin"])
def test_many_ties_give_few_entries(way, request):
    if way == "twin":
        request.getfixturevalue("without_kernel")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        cost = torch.randint(0, 2, (1, 12, 12), generator=generator).double()
        weights = [torch.randint(1, 4, (1, 12), generator=generator).double() for _ in range(2)]
        found = exact_transport(cost, *(weight / weight.sum() for weight in weights))
        assert int((found.plan > 0).sum()) <= 23


def test_a_flow_with_a_cycle_becomes_a_forest():
    """The repair itself, on a plan that the solver would not make: four entries between two and two regions."""
    solved = exact._Problem([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5], [0.5, 0.5])
    solved.flow = [[0.3, 0.2], [0.2, 0.3]]
    solved._settle()
    assert sum(value > 0 for row in solved.flow for value in row) <= 3
    assert [sum(row) for row in solved.flow] == pytest.approx([0.5, 0.5])
    assert [sum(column) for column in zip(*solved.flow, strict=True)] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("change", [lambda w: w[:, :-1], lambda w: w[:1], lambda w: w[0]])
def test_weights_that_do_not_fit_the_cost_are_refused(which, change):
    parts = problem(3, 4, 5)
    parts[which] = change(parts[which])
    with pytest.raises(ValueError, match=r"weight_q, weight_g: need \(3, 4\) and \(3, 5\).*got \("):
        exact_transport(*parts)


@pytest.mark.parametrize("epsilon", [-1e-9, -1.0, float("inf"), float("nan")])
def test_other_epsilons_are_refused(epsilon):
    with pytest.raises(
        ValueError, match=r"epsilon: need a finite number of at least 0, got .*; 0 stands for exact plans"
    ):
        match(images(1), images(1), epsilon=epsilon)
