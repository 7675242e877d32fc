"""Laws of the method that hold for every input, degenerate ones included."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diml.matching import Matcher, Regions, match, matcher, sinkhorn
from laws.strategies import diracs, duplicates, maps, pairs, permutations, seeds
from scores import score

EPSILONS = st.sampled_from([1e-3, 0.05, 1.0])
WEIGHTS = st.sampled_from(["cross_correlation", "uniform"])

#: Settings under which two routes to one plan end in the same place: float64, smooth, converged to rounding.
TIGHT = {"epsilon": 0.5, "tolerance": 1e-11, "max_iterations": 10_000}


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def shuffled(side: Regions, order: torch.Tensor) -> Regions:
    shares = None if side.shares is None else side.shares[:, order]
    return Regions(side.dense[:, order], side.pooled, shares=shares)


# ------------------------------------------------------------------------------------------------ the plan


@given(pairs(dtype=torch.float32), WEIGHTS, EPSILONS)
def test_everything_is_finite_and_in_range(sides, weights, epsilon):
    found = match(*sides, weights=weights, epsilon=epsilon, max_iterations=200)
    for name in ("plan", "cosine", "structural", "pooled", "score", "weight_q", "weight_g", "marginal_error"):
        assert torch.isfinite(getattr(found, name)).all(), name
    assert (found.plan >= 0).all()
    assert (found.structural.abs() <= 1 + 1e-5).all()


@given(pairs(dtype=torch.float32), WEIGHTS, EPSILONS)
def test_sums_of_the_plan_are_the_weights(sides, weights, epsilon):
    found = match(*sides, weights=weights, epsilon=epsilon, max_iterations=200)
    for weights in (found.weight_q, found.weight_g):
        close(weights.sum(dim=1), torch.ones(len(found)), 1e-6)
    close(found.plan.sum(dim=2), found.weight_q, 1e-6)
    column_error = (found.plan.sum(dim=1) - found.weight_g).abs().sum(dim=1)
    close(column_error, found.marginal_error, 2e-6)
    assert torch.equal(found.converged, found.marginal_error <= 4e-6)


@given(pairs(), WEIGHTS)
def test_swapping_the_sides_transposes_the_plan(sides, weights):
    query, gallery = sides
    there, back = (match(*pair, weights=weights, **TIGHT) for pair in ((query, gallery), (gallery, query)))
    close(back.plan, there.plan.mT, 1e-6)
    close(back.score, there.score, 1e-6)
    assert torch.equal(back.weight_q, there.weight_g)


@given(pairs(), WEIGHTS, st.randoms(use_true_random=False))
def test_permuting_the_cells_permutes_the_plan(sides, weights, random):
    orders = [torch.tensor(random.sample(range(s.num_regions), s.num_regions)) for s in sides]
    found = match(*sides, weights=weights)
    moved = match(*map(shuffled, sides, orders), weights=weights)
    close(moved.plan, found.plan[:, orders[0]][:, :, orders[1]], 1e-9)
    close(moved.score, found.score, 1e-9)


@given(pairs(dtype=torch.float32), WEIGHTS)
def test_contributions_sum_to_the_structural_score(sides, weights):
    found = match(*sides, weights=weights)
    for i in range(len(found)):
        ledger = found.ledger(i)
        close(ledger.contributions.sum(), found.structural[i].double(), 1e-6)
        close(ledger.total_q.sum(), ledger.total_g.sum(), 1e-12)
        assert ledger.score == pytest.approx(float(found.score[i]), abs=1e-6)


@given(maps(), WEIGHTS, st.sampled_from([0.0, 1.0, 4.0]), st.randoms(use_true_random=False))
def test_the_whole_score_is_one_sum_over_pairs_of_regions(features, weights, structural_weight, random):
    query = Regions.from_maps(features, shares=True)
    gallery = Regions.cat([query[1:], query[:1]])
    settings = {"weights": weights, "structural_weight": structural_weight, **TIGHT}
    there, back = match(query, gallery, **settings), match(gallery, query, **settings)
    orders = [torch.tensor(random.sample(range(query.num_regions), query.num_regions)) for _ in range(2)]
    moved = match(*(shuffled(side, order) for side, order in zip((query, gallery), orders, strict=True)), **settings)
    for i in range(len(query)):
        whole = there.ledger(i).whole
        assert float(whole.sum()) == pytest.approx(there.ledger(i).score, abs=1e-9)
        close(back.ledger(i).whole, whole.mT, 1e-6)
        close(moved.ledger(i).whole, whole[orders[0]][:, orders[1]], 1e-6)


@given(pairs(max_pairs=6), WEIGHTS)
def test_a_pair_scores_the_same_alone_and_in_a_batch(sides, weights):
    query, gallery = sides
    together = match(query, gallery, weights=weights)
    for i in range(len(together)):
        alone = match(query[i], gallery[i], weights=weights)
        close(alone.score, together.score[i : i + 1], 1e-9)
        close(alone.plan, together.plan[i : i + 1], 1e-9)


@given(pairs(), WEIGHTS)
def test_one_against_many_is_each_against_one(sides, weights):
    query, gallery = sides[0][0], sides[1]
    many = match(query, gallery, weights=weights).score
    each = [match(query, gallery[i], weights=weights).score for i in range(len(gallery))]
    close(many, torch.cat(each), 1e-9)
    mirrored = match(Regions.cat([query] * len(gallery)), gallery, weights=weights).score
    close(many, mirrored, 1e-9)


@given(pairs(), st.floats(1e-3, 1e3))
def test_the_scale_of_given_weights_does_not_matter(sides, scale):
    weights = [1 + torch.arange(s.num_regions, dtype=torch.float64)[None] for s in sides]
    found = match(*sides, weights=tuple(weights))
    scaled = match(*sides, weights=tuple(scale * weight for weight in weights))
    # Rounding of the weights may decide about an iteration more or less, and each stops within the tolerance.
    close(scaled.plan, found.plan, 2 * Matcher().tolerance)


# -------------------------------------------------------------------------------------------- known answers


@given(permutations())
def test_shuffled_orthogonal_regions_are_matched_one_to_one(known):
    found = match(known.query, known.gallery, weights=known.weights, epsilon=0.02)
    close(found.plan, known.plan, 1e-6)
    close(found.structural, torch.ones(1, dtype=torch.float64), 1e-6)


@given(diracs(), EPSILONS)
def test_all_mass_in_one_region_goes_one_way(known, epsilon):
    found = match(known.query, known.gallery, weights=known.weights, epsilon=epsilon)
    close(found.plan, known.plan, 1e-12)
    close(found.structural, (known.plan * found.cosine).sum(dim=(1, 2)), 1e-12)
    assert found.converged.all()


@given(duplicates(), EPSILONS)
def test_equal_costs_give_the_product_of_the_weights(known, epsilon):
    found = match(known.query, known.gallery, weights=known.weights, epsilon=epsilon)
    close(found.plan, known.plan, 1e-9)
    close(found.structural, torch.ones(len(found), dtype=torch.float64), 1e-9)


@given(pairs(kinds=("opposite",)))
def test_without_any_mass_the_weights_are_uniform(sides):
    found = match(*sides)
    for weights in (found.weight_q, found.weight_g):
        close(weights, torch.full_like(weights, 1 / weights.shape[1]), 1e-12)


# -------------------------------------------------------------------------------- one result by every route
# In float64, where rounding does not move the iteration at which a pair stops; tests/unit has these in float32.


@given(pairs(), WEIGHTS, st.sampled_from([1, 1000, 5000, 2**20]), st.data())
def test_score_is_match_on_the_gathered_rows(sides, weights, block_bytes, data):
    query, gallery = sides
    rows = st.lists(st.integers(0, len(gallery) - 1), min_size=len(query) * 3, max_size=len(query) * 3)
    candidates = torch.tensor(data.draw(rows)).reshape(len(query), 3)
    settings = {"weights": weights, "epsilon": 0.5}  # all pairs converge, so no warning
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matcher, "BLOCK_BYTES", block_bytes)
        scores = score(query, gallery, candidates, **settings)
    for i, chosen in enumerate(candidates):
        close(scores[i], match(query[i], gallery[chosen], **settings).score, 1e-9)


@given(
    pairs(max_pairs=2),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([0.05, 0.2]),
)
def test_the_log_route_gives_the_plain_plan(sides, dtype, epsilon):
    found = match(*sides)
    problem = [part.to(dtype) for part in (1 - found.cosine, found.weight_q, found.weight_g)]
    limits = sys.modules["diml.matching.transport"].PLAIN_RANGE
    plans = []
    for limit in (float("inf"), -1.0):  # everything plain; everything through logarithms
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(limits, dtype, limit)
            plans.append(sinkhorn(*problem, epsilon=epsilon))
    close(plans[1].plan, plans[0].plan, {torch.float32: 2e-6, torch.float64: 1e-9}[dtype])


@given(maps(), WEIGHTS)
def test_training_and_evaluation_give_the_same_score(features, weights):
    training = Regions.from_maps(features.clone().requires_grad_())
    evaluation = Regions.from_maps(features)
    count = len(evaluation)
    left, right = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(count)] * 2, indexing="ij"))
    settings = {"weights": weights, "epsilon": 0.5}  # all pairs converge, so no warning
    trained = match(training[left], training[right], **settings).score
    assert trained.requires_grad
    with torch.inference_mode():
        every = torch.arange(count).expand(count, count)
        evaluated = score(evaluation, evaluation, every, **settings)
    close(trained.detach().reshape(count, count), evaluated, 1e-9)


@given(pairs(dtype=torch.float32), st.sampled_from([torch.float16, torch.bfloat16]), WEIGHTS)
def test_half_precision_is_storage_only(sides, dtype, weights):
    stored = [side.to(dtype) for side in sides]
    found = match(*stored, weights=weights)
    exact = match(*(side.to(torch.float32) for side in stored), weights=weights)
    assert found.score.dtype == torch.float32
    assert torch.equal(found.plan, exact.plan)
    assert torch.equal(found.score, exact.score)


@given(pairs(kinds=("random", "similar"), dtype=torch.float32), WEIGHTS)
def test_half_precision_storage_stays_close(sides, weights):
    score = match(*sides, weights=weights).score
    for dtype, atol in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        close(match(*(side.to(dtype) for side in sides), weights=weights).score, score, atol)


@given(pairs(dtype=torch.float32), WEIGHTS)
def test_autocast_changes_nothing(sides, weights):
    plain = match(*sides, weights=weights)
    with torch.autocast("cpu", torch.bfloat16):
        cast = match(*sides, weights=weights)
    for name in ("plan", "cosine", "structural", "pooled"):
        assert torch.equal(getattr(cast, name), getattr(plain, name)), name


# ------------------------------------------------------------------------------------------------ gradients


@given(maps(), WEIGHTS)
def test_gradients_flow_through_the_cosines_only(features, weights):
    count = len(features)

    def gradient(objective):
        leaf = features.clone().requires_grad_()
        regions = Regions.from_maps(leaf)
        query, gallery = regions, regions[torch.arange(count).roll(1)]
        return torch.autograd.grad(objective(query, gallery), leaf)[0]

    def by_match(query, gallery):
        return match(query, gallery, weights=weights).score.sum()

    def by_hand(query, gallery):
        plan = match(query, gallery, weights=weights).plan.detach()
        pooled = (query.pooled * gallery.pooled).sum()
        return pooled + (plan * (query.dense @ gallery.dense.mT)).sum()

    close(gradient(by_match), gradient(by_hand), 1e-12)


@given(maps(), seeds)
def test_the_gradient_of_unit_vectors_is_the_numerical_one(features, seed):
    features = (features + 0.1).requires_grad_()
    direction = torch.randn(features.shape[:2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def project(leaf):
        regions = Regions.from_maps(leaf)
        return (regions.dense * direction[:, None]).sum() + (regions.pooled * direction).sum()

    assert torch.autograd.gradcheck(project, features)


@given(pairs(dtype=torch.float32), WEIGHTS, EPSILONS)
def test_gradients_are_finite_in_every_case(sides, weights, epsilon):
    leaves = [side.dense.clone().requires_grad_() for side in sides]
    query, gallery = (Regions.normalized(leaf, leaf.mean(dim=1)) for leaf in leaves)
    match(query, gallery, weights=weights, epsilon=epsilon, max_iterations=100).score.sum().backward()
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all()
