"""Partial transport, `Matcher(share=...)`: kernel, twin, oracles; what results mean; training; saving; errors."""

from __future__ import annotations

import itertools
import json

import ot.partial
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.cli.options import MatcherOptions
from diml.matching import Matcher, Regions, match, matcher, native, sinkhorn
from diml.matching.partial import Dustbins, auto_threshold
from diml.matching.transport import exact_transport
from diml.objectives import StructuralDistance, StructuralSimilarity, build_objective
from kernel_twin import assert_scores_stand_alone, assert_trains_as_torch, by_twin, images, needs_kernel

PROBLEM = (torch.rand(1, 2, 2), torch.full((1, 2), 0.5), torch.full((1, 2), 0.5))

SHARES = pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.999, "auto"])
EPSILONS = pytest.mark.parametrize("epsilon", [0.0, 0.05])


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------------- oracles


@pytest.mark.parametrize("way", ["kernel", "twin"])
@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (9, 4), (16, 16)], ids=str)
def test_the_exact_cost_is_that_of_pot(way, weights, share, shape, request):
    if way == "twin":
        request.getfixturevalue("without_kernel")
    query, gallery = (images(3, n, seed=n + k, dtype=torch.float64) for k, n in enumerate(shape))
    found = match(query, gallery, epsilon=0, share=share, weights=weights)
    cost = 1 - found.cosine
    for i in range(3):
        problem = [part[i].numpy() for part in (found.weight_q, found.weight_g, cost)]
        expected = ot.partial.partial_wasserstein(*problem, m=share)
        assert float((found.plan[i] * cost[i]).sum()) == pytest.approx(float((expected * problem[2]).sum()), abs=1e-9)


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_little_entropy_approaches_the_exact_plan(share):
    sides = images(4, 9, dtype=torch.float64), images(4, 9, seed=1, dtype=torch.float64)
    exact, gaps = match(*sides, epsilon=0, share=share).score, []
    for epsilon in (0.05, 0.01, 0.002):
        smooth = match(*sides, epsilon=epsilon, share=share, tolerance=1e-7, max_iterations=50_000)
        gaps.append(float((exact - smooth.score).abs().max()))
    assert all(later < earlier for earlier, later in itertools.pairwise(gaps))
    assert gaps[-1] < 1e-3


def test_the_entropic_plan_minimises_cost_and_entropy_of_the_extended_problem():
    """Against a plain Sinkhorn iteration on the matrix with dustbins written out."""
    query, gallery = images(1, 5, dtype=torch.float64), images(1, 7, seed=1, dtype=torch.float64)
    for share, mass, corner in ((0.7, 0.3, 0.0), ("auto", 1.0, 1.0)):
        found = match(query, gallery, share=share, tolerance=1e-11)
        level = auto_threshold(found.cosine, found.weight_q, found.weight_g)
        kernel = torch.ones(6, 8, dtype=torch.float64)
        kernel[:-1, :-1], kernel[-1, -1] = ((found.cosine[0] - level) / 0.05).exp(), corner
        a, b = (torch.cat([w[0], w.new_tensor([mass])]) for w in (found.weight_q, found.weight_g))
        v = torch.ones_like(b)
        for _ in range(800):
            u = a / (kernel @ v)
            v = b / (kernel.T @ u)
        close(found.plan[0], (u[:, None] * kernel * v)[:-1, :-1], 1e-9)


# ----------------------------------------------------------------------------------------- kernel and twin


@needs_kernel
@settings(max_examples=60)
@given(
    regions_q=st.integers(1, 20) | st.just(49),
    regions_g=st.integers(1, 20) | st.just(49),
    dim=st.integers(8, 40),
    stored=st.sampled_from([torch.float32, torch.float16, torch.int16, torch.int8]),
    weights=st.sampled_from(["cross_correlation", "uniform"]),
    epsilon=st.sampled_from([0.0, 0.02, 0.05, 0.2]),
    share=st.sampled_from([0.1, 0.5, 0.8, 0.99, "auto"]),
    seed=st.integers(0, 1000),
)
def test_scores_of_the_kernel_are_those_of_torch(regions_q, regions_g, dim, stored, weights, epsilon, share, seed):
    ours = Matcher(epsilon=epsilon, weights=weights, share=share)
    query, gallery = images(3, regions_q, dim, seed), images(11, regions_g, dim, seed + 1)
    gallery = gallery.to(stored) if stored.is_floating_point else gallery.quantized(stored)
    rows = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(seed))
    first = matcher._score_native(ours, query, gallery, torch.arange(3).repeat_interleave(9), rows.flatten())
    small = epsilon > 0 or regions_q * regions_g <= 400  # the twin of exact plans is plain Python
    twin = by_twin if small else lambda call: call()
    second = twin(lambda: matcher._score_torch(ours, query, gallery, rows))
    finished = bool(first.converged.all() and second.converged.all())
    assert finished or epsilon > 0
    close(first.scores.view(3, 9), second.scores, 1e-5 if finished else 1e-3)


@needs_kernel
@SHARES
@EPSILONS
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (16, 16), (17, 15), (49, 49), (64, 49)], ids=str)
def test_every_instruction_set_makes_the_plans_of_match(instruction_set, share, epsilon, shape):
    ours = Matcher(epsilon=epsilon, share=share, tolerance=1e-6)
    query, gallery = images(20, shape[0], seed=1), images(20, shape[1], seed=2)
    packed = [torch.cat([side.dense, side.pooled.unsqueeze(1)], dim=1) for side in (query, gallery)]
    row = torch.arange(20)
    solver = native.SolverSettings(**ours.solver)
    found = native.compare(*packed, native.PairIndices(row, row), solver, uniform=False, keep_cosine=True)
    expected = by_twin(lambda: ours.match(query, gallery)) if epsilon else ours.match(query, gallery)
    close(found.plan, expected.plan, 2e-6)
    close(found.cosine, expected.cosine, 1e-6)
    close(found.scores.structural, expected.structural, 2e-6)
    close(found.scores.marginal_error, expected.marginal_error, 2e-6)
    assert found.scores.converged.all()


@needs_kernel
@SHARES
@pytest.mark.parametrize("shape", [(5, 7), (48, 47)], ids=str)
def test_given_costs_are_solved_as_in_torch(instruction_set, share, shape):
    found = match(images(21, shape[0]), images(21, shape[1], seed=1))
    problem = (1 - found.cosine, found.weight_q, found.weight_g)
    ours, twin = sinkhorn(*problem, share=share), by_twin(lambda: sinkhorn(*problem, share=share))
    for name in ("plan", "unmatched_q", "unmatched_g"):
        close(getattr(ours, name), getattr(twin, name), 1e-5)
    assert (ours.marginal_error <= 4e-6 * 1.01).all()
    assert ours.converged.all()


@needs_kernel
@SHARES
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (9, 4), (16, 16)], ids=str)
def test_exact_plans_of_the_kernel_are_those_of_the_twin(instruction_set, share, shape):
    found = match(images(3, shape[0], dtype=torch.float64), images(3, shape[1], seed=1, dtype=torch.float64))
    problem = (1 - found.cosine, found.weight_q, found.weight_g)
    ours, twin = (way(lambda: exact_transport(*problem, share=share)) for way in (lambda call: call(), by_twin))
    for name in ("plan", "potential_q", "potential_g", "unmatched_q", "unmatched_g"):
        close(getattr(ours, name), getattr(twin, name), 1e-12)


@needs_kernel
@pytest.mark.parametrize("share", [0.7, "auto"])
def test_pairs_too_wide_for_float32_are_solved_all_the_same(share):
    sides = images(6, 5), images(6, 5, seed=1)
    settings = {"epsilon": 0.01, "share": share, "max_iterations": 5000}
    found = match(*sides, **settings)
    expected = match(*(side.to(torch.float64) for side in sides), **settings)
    assert found.converged.all()
    close(found.plan.double(), expected.plan, 1e-5)
    close(found.unmatched_q.double(), expected.unmatched_q, 1e-5)
    rows = torch.arange(6)[:, None]
    close(Matcher(**settings).score(*sides, rows)[:, 0].double(), expected.score, 1e-5)


@needs_kernel
@SHARES
@EPSILONS
def test_a_score_does_not_depend_on_its_companions_or_the_number_of_threads(share, epsilon):
    assert_scores_stand_alone(Matcher(epsilon=epsilon, share=share))


# ---------------------------------------------------------------------------------------------- what it means


@EPSILONS
def test_share_1_is_no_extension_at_all(epsilon):
    sides, rows = (images(5), images(5, 9, seed=1)), torch.arange(5).expand(5, 5)
    plain, whole = Matcher(epsilon=epsilon), Matcher(epsilon=epsilon, share=1)
    assert torch.equal(plain.match(*sides).plan, whole.match(*sides).plan)
    assert torch.equal(plain.score(*sides, rows), whole.score(*sides, rows))
    assert whole.match(*sides).unmatched_q is None
    near = Matcher(epsilon=epsilon, share=1 - 1e-6).match(*sides)
    close(near.structural, plain.match(*sides).structural, 1e-4)


@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
def test_a_region_without_a_counterpart_stays_unmatched(weights):
    """Four regions, three of which both images have: a quarter of the mass has to stay behind, and it is the fourth."""
    vectors = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    query = Regions.normalized(vectors[None, [0, 1, 2, 3]], vectors[None, :3].mean(dim=1))
    gallery = Regions.normalized(vectors[None, [4, 2, 1, 0]], vectors[None, :3].mean(dim=1))
    uniform = torch.full((1, 4), 0.25)
    given = {"weights": (uniform, uniform)} if weights == "uniform" else {}
    for share in (0.75, "auto"):
        found = Matcher(epsilon=0, share=share).match(query, gallery, **given)
        if weights == "uniform":
            close(found.unmatched_q, torch.tensor([[0, 0, 0, 0.25]]), 1e-6)
            close(found.unmatched_g, torch.tensor([[0.25, 0, 0, 0]]), 1e-6)
            close(found.structural, torch.tensor([0.75]), 1e-6)
        else:  # the fourth region has no weight at all
            assert found.weight_q[0, 3] < 1e-6


def test_structural_is_the_sum_over_what_is_transported():
    found = match(images(4), images(4, seed=1), share=0.6)
    close(found.structural, (found.plan * found.cosine).sum(dim=(1, 2)), 1e-6)
    close(found.plan.sum(dim=(1, 2)), torch.full((4,), 0.6), 1e-5)
    ledger = found.ledger(1)
    assert ledger.structural == pytest.approx(float(found.structural[1]), abs=1e-6)
    close(ledger.unmatched_q, found.weight_q[1] - found.plan[1].sum(dim=1), 1e-7)
    close(ledger.unmatched_q.sum(), ledger.unmatched_g.sum(), 1e-5)


def test_auto_matches_where_the_cosine_exceeds_the_threshold():
    query, gallery = images(8, 9, dtype=torch.float64), images(8, 12, seed=1, dtype=torch.float64)
    found = match(query, gallery, epsilon=0, share="auto")
    threshold = auto_threshold(found.cosine, found.weight_q, found.weight_g)[:, None, None]
    assert (found.cosine >= threshold - 1e-9)[found.plan > 0].all()
    left = (found.unmatched_q > 1e-12).unsqueeze(2) & (found.unmatched_g > 1e-12).unsqueeze(1)
    assert left.any()
    assert (found.cosine <= threshold + 1e-9)[left].all()  # of two regions that both keep mass
    close(2 * found.potential_q.amax(dim=1), 1 - threshold[:, 0, 0], 1e-9)


def test_a_threshold_of_all_cosines_matches_everything_and_one_above_them_nothing(monkeypatch):
    sides = images(4, 9), images(4, 9, seed=1)
    for level, share in ((-1.1, 1.0), (1.1, 0.0)):
        monkeypatch.setattr(
            "diml.matching.partial.auto_threshold",
            lambda cosine, *_, level=level: torch.full_like(cosine[:, 0, 0], level),
        )
        found = match(*sides, epsilon=0, share="auto")
        close(found.plan.sum(dim=(1, 2)), torch.full((4,), share), 1e-6)


def test_potentials_tell_what_is_missing_for_a_match():
    """Raising the cosine of two regions by a little less than their reduced cost changes nothing; by more, it does."""
    generator = torch.Generator().manual_seed(0)
    weights = tuple(torch.rand(1, 6, generator=generator, dtype=torch.float64).softmax(dim=1) for _ in range(2))
    sides = (images(1, 6, seed=seed, dtype=torch.float64) for seed in (0, 1))
    found = match(*sides, epsilon=0, share=0.6, weights=weights)
    cost = 1 - found.cosine
    reduced = cost - found.potential_q.unsqueeze(2) - found.potential_g.unsqueeze(1)
    for i, j in itertools.product(range(6), range(6)):
        if found.plan[0, i, j] > 0:
            continue
        for factor in (0.99, 1.01):
            changed = cost.clone()
            changed[0, i, j] -= reduced[0, i, j] * factor
            assert (exact_transport(changed, *weights, share=0.6).plan[0, i, j] > 0) == (factor > 1)


@SHARES
@EPSILONS
@pytest.mark.parametrize("size", [1, 4, 16])
def test_blank_and_equal_images(share, epsilon, size):
    blank = Regions(torch.zeros(2, size, 8), torch.zeros(2, 8))
    found = match(blank, blank, share=share, epsilon=epsilon)
    close(found.score, torch.zeros(2), 0)
    assert torch.isfinite(found.plan).all()
    given = images(2, size)
    itself = match(given, given, share=share, epsilon=epsilon)
    assert torch.isfinite(itself.score).all()
    if share != "auto":
        close(itself.plan.sum(dim=(1, 2)), torch.full((2,), float(share)), 1e-5)
    if epsilon == 0 and share != "auto":  # the best that there is
        close(itself.structural, torch.full((2,), float(share)), 1e-5)


@EPSILONS
@pytest.mark.parametrize("share", [0.7, "auto"])
def test_weights_of_zero_and_many_regions(epsilon, share):
    query, gallery = images(2, 3), images(2, 196, seed=1)
    weight = torch.zeros(1, 196)
    weight[0, [3, 100]] = 1
    found = match(query, gallery, weights=(torch.tensor([[1.0, 0, 1]]), weight), epsilon=epsilon, share=share)
    assert (found.plan[:, 1] == 0).all()
    assert (found.unmatched_q[:, 1] == 0).all()
    assert (found.unmatched_g[:, weight[0] == 0] == 0).all()
    close(found.unmatched_g.sum(dim=1), found.unmatched_q.sum(dim=1), 1e-5)


@SHARES
@EPSILONS
@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
def test_match_score_rerank_and_unique_pairs_agree(share, epsilon, stored):
    ours, given = Matcher(share=share, epsilon=epsilon), images(7)
    gallery = given if stored is torch.float32 else given.quantized(stored)
    rows = torch.arange(7).expand(7, 7)
    scores = ours.score(given, gallery, rows)
    limit = 1e-5 if stored is torch.float32 else 3e-2
    for i in range(7):
        close(scores[i], ours.match(given[i : i + 1], given).score, limit)
    ranking = ours.rerank(given, gallery, rows)
    assert torch.equal(ranking.scores, scores.sort(dim=1, descending=True).values)
    close(ours.score_unique_pairs(gallery, torch.arange(7), rows).scores, scores, limit)
    uniform = torch.full((1, 16), 1 / 16)
    given_weights = ours.score(given, given, rows, weights=(uniform, uniform))
    close(given_weights, Matcher(share=share, epsilon=epsilon, weights="uniform").score(given, given, rows), 1e-5)


def test_pairs_that_are_cut_short_are_flagged_in_units_of_the_mass():
    found = match(images(3, 9), images(3, 9, seed=1), share=0.5, max_iterations=1, epsilon=0.02)
    columns = (found.plan.sum(dim=1) + found.unmatched_g - found.weight_g).abs().sum(dim=1)
    assert not found.converged.any()
    assert (found.marginal_error > 1e-4).all()
    assert (columns <= found.marginal_error + 1e-6).all()


def test_dustbins_of_a_share_hold_the_rest():
    cost = torch.rand(2, 3, 4)
    weights = torch.full((2, 3), 1 / 3), torch.full((2, 4), 1 / 4)
    bins = Dustbins.of(cost, *weights, 0.8)
    assert bins.extended(cost, torch.inf).shape == (2, 4, 5)
    assert bins.extended(cost, torch.inf)[:, -1, -1].isinf().all()
    close(bins.with_mass(weights[0]).sum(dim=1), torch.ones(2), 1e-6)
    close(bins.with_mass(weights[0])[:, -1], torch.full((2,), 0.2 / 1.2), 1e-6)


# ------------------------------------------------------------------------------------------------- training


@needs_kernel
@pytest.mark.parametrize(
    ("kind", "share"), [(StructuralSimilarity, 0.7), (StructuralSimilarity, "auto"), (StructuralDistance, 0.7)]
)
@EPSILONS
def test_training_values_and_gradients_are_those_of_torch(kind, share, epsilon):
    """The plan and the threshold are constants of the gradient, by the kernel and in torch."""
    assert_trains_as_torch(kind(9, Matcher(epsilon=epsilon, share=share)))


@pytest.mark.parametrize("share", [0.7, "auto"])
def test_gradients_flow_through_the_cosines_only(share):
    leaf = torch.randn(4, 9, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    side = Regions.normalized(leaf, leaf.mean(dim=1))
    found = match(side, side[[1, 2, 3, 0]], share=share)
    for name in ("plan", "unmatched_q", "unmatched_g"):
        assert not getattr(found, name).requires_grad, name
    by_match = torch.autograd.grad(found.structural.sum(), leaf, retain_graph=True)[0]
    by_hand = torch.autograd.grad((found.plan * found.cosine).sum(), leaf)[0]
    close(by_match, by_hand, 1e-7)


def test_an_objective_trains_with_a_share():
    features = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for name, share in (("multisimilarity_diml", "auto"), ("multisimilarity_diml", 0.8), ("margin_diml", 0.8)):
        objective = build_objective(
            name, num_classes=4, embedding_dim=16, num_regions=4, matcher={"share": share}, generator=torch.Generator()
        )
        value = objective(Regions.normalized(features, features.mean(dim=1)), torch.arange(8) // 2)
        assert torch.isfinite(torch.autograd.grad(value, features)[0]).all()


def test_a_distance_of_what_happens_to_be_matched_is_refused():
    with pytest.raises(ValueError, match=r"matcher: share 'auto' .*; use a number as share, or StructuralSimilarity"):
        StructuralDistance(9, Matcher(share="auto"))


# ----------------------------------------------------------------------------------------- saving and errors


@pytest.mark.parametrize("share", [0.25, 1.0, "auto"])
def test_the_setting_survives_saving(share):
    ours = Matcher(share=share)
    assert Matcher.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


def test_settings_saved_without_a_share_transport_everything():
    old = {name: value for name, value in Matcher().to_dict().items() if name != "share"}
    assert Matcher.from_dict(old).share == 1
    assert Matcher.from_dict({"share": "0.5"}).share == 0.5


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), float("inf"), "all", None])
@pytest.mark.parametrize(
    "call",
    [lambda share: Matcher(share=share), lambda share: sinkhorn(*PROBLEM, share=share)],
    ids=["Matcher", "sinkhorn"],
)
def test_other_shares_are_refused(call, share):
    with pytest.raises(ValueError, match=r"share: need a number above 0 and up to 1, or 'auto', got .*; 1 transports"):
        call(share)


@pytest.mark.parametrize("share", ["most", None])
def test_wrong_plain_values_are_named(share):
    with pytest.raises(ValueError, match="matcher: share needs a number or 'auto', got"):
        Matcher.from_dict({"share": share})


def test_it_is_a_flag_of_all_commands():
    options = MatcherOptions(share=0.8)
    assert options.applied_to(Matcher(epsilon=0.02)) == Matcher(epsilon=0.02, share=0.8)
    assert options.notice(Matcher()) == "Matcher as given on the command line: share 0.8 (the model's own: 1.0)"
