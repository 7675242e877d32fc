"""Laws of MaxSim that hold for every input, degenerate ones included."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from diml.matching import Matcher, Regions, match
from diml.matching.maxsim import maxsim_plan
from laws.strategies import pairs, seeds

WEIGHTS = st.sampled_from(["cross_correlation", "uniform"])
MATCHINGS = st.sampled_from(["maxsim", "maxsim_query"])
#: Few values, so that regions are often equally similar.
LEVELS = torch.tensor([-0.5, 0.0, 0.25, 1.0])


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@st.composite
def problems(draw, max_regions=9, columns=None):
    """Cosines (B, Rq, Rg), generic or full of ties, and weights, some of them zero, in float32 or float64."""
    count, rows, cols = draw(st.tuples(st.integers(1, 4), *[st.integers(1, max_regions)] * 2))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(seeds))
    cosine = 2 * torch.rand(count, rows, cols, generator=generator, dtype=dtype) - 1
    if draw(st.booleans()):
        cosine = LEVELS.to(dtype)[torch.randint(0, 4, cosine.shape, generator=generator)]
    weights = []
    for size in (rows, cols):
        weight = torch.rand(count, size, generator=generator, dtype=dtype)
        weight[:, 1:] *= torch.rand(count, size - 1, generator=generator) > 0.2
        weights.append(weight / weight.sum(dim=1, keepdim=True))
    return cosine, *weights


@given(pairs(dtype=torch.float32), WEIGHTS, MATCHINGS)
def test_everything_is_finite_and_all_mass_is_somewhere(sides, weights, matching):
    found = match(*sides, weights=weights, matching=matching)
    for name in ("plan", "structural", "score", "marginal_error"):
        assert torch.isfinite(getattr(found, name)).all(), name
    assert (found.plan >= 0).all()
    close(found.plan.sum(dim=(1, 2)), torch.ones(len(found)), 1e-6)
    assert found.converged.all()
    assert not found.marginal_error.any()
    assert not found.iterations.any()


@given(problems())
def test_exchanging_the_sides_transposes_the_plan_in_every_bit(problem):
    cosine, weight_q, weight_g = problem
    there, back = maxsim_plan(cosine, weight_q, weight_g), maxsim_plan(cosine.mT, weight_g, weight_q)
    assert torch.equal(back, there.mT)


@given(problems(), MATCHINGS, st.randoms(use_true_random=False))
def test_permuting_the_regions_permutes_the_plan_in_every_bit(problem, matching, random):
    cosine, weight_q, weight_g = problem
    rows, columns = (torch.tensor(random.sample(range(size), size)) for size in cosine.shape[1:])
    plain = maxsim_plan(cosine, weight_q, weight_g, matching)
    moved = maxsim_plan(cosine[:, rows][:, :, columns], weight_q[:, rows], weight_g[:, columns], matching)
    assert torch.equal(moved, plain[:, rows][:, :, columns])


@given(problems())
def test_it_is_the_mean_of_the_plans_of_both_sides(problem):
    cosine, weight_q, weight_g = problem
    of_query = maxsim_plan(cosine, weight_q, weight_g, "maxsim_query")
    of_gallery = maxsim_plan(cosine.mT, weight_g, weight_q, "maxsim_query").mT
    close(maxsim_plan(cosine, weight_q, weight_g), (of_query + of_gallery) / 2, 1e-7)
    close(of_query.sum(dim=2), weight_q, 1e-6)


@given(problems(), MATCHINGS)
def test_the_structural_score_is_the_mean_of_the_largest_cosines(problem, matching):
    cosine, weight_q, weight_g = problem
    found = (maxsim_plan(cosine, weight_q, weight_g, matching) * cosine).sum(dim=(1, 2))
    of_query, of_gallery = ((weight * cosine.amax(dim=3 - k)).sum(dim=1) for k, weight in enumerate(problem[1:], 1))
    close(found, of_query if matching == "maxsim_query" else (of_query + of_gallery) / 2, 1e-6)


@given(pairs(), WEIGHTS)
def test_no_transport_plan_scores_higher_than_maxsim(sides, weights):
    """Either half of it has one of the two constraints of a transport plan, and is the best under it."""
    best = match(*sides, weights=weights, matching="maxsim").structural
    query = match(*sides, weights=weights, matching="maxsim_query").structural
    for epsilon in (0, 0.05):
        found = match(*sides, weights=weights, epsilon=epsilon)
        assert (found.structural <= best + 1e-5).all()
        assert (found.structural <= query + 1e-5).all()


@given(pairs(), WEIGHTS)
def test_exchanging_the_images_keeps_the_score(sides, weights):
    query, gallery = sides
    settings = {"weights": weights, "matching": "maxsim"}
    close(match(gallery, query, **settings).score, match(query, gallery, **settings).score, 1e-9)


@given(pairs(max_pairs=1), WEIGHTS, MATCHINGS, st.randoms(use_true_random=False))
def test_the_order_of_the_regions_does_not_change_the_score(sides, weights, matching, random):
    orders = [torch.tensor(random.sample(range(s.num_regions), s.num_regions)) for s in sides]
    shuffled = [Regions(s.dense[:, order], s.pooled) for s, order in zip(sides, orders, strict=True)]
    settings = {"weights": weights, "matching": matching}
    close(match(*shuffled, **settings).score, match(*sides, **settings).score, 1e-9)


@given(pairs(), WEIGHTS, MATCHINGS)
def test_contributions_and_parts_sum_to_the_score(sides, weights, matching):
    found = match(*sides, weights=weights, matching=matching)
    ledger = found.ledger()
    assert abs(ledger.score - float(found.score[0])) <= 1e-6
    parts = ledger.parts()
    total = sum(row.value for row in parts.rows) + parts.between + (parts.pooled or 0.0)
    assert abs(total - ledger.score) <= 1e-6


@given(pairs(kinds=("random", "similar"), max_pairs=3), MATCHINGS, seeds)
def test_a_pair_scores_the_same_alone_and_in_a_batch(sides, matching, seed):
    query, gallery = sides
    ours = Matcher(matching=matching)
    row = seed % len(query)
    alone = ours.match(query[row : row + 1], gallery[row : row + 1])
    close(alone.score, ours.match(query, gallery).score[row : row + 1], 1e-12)
