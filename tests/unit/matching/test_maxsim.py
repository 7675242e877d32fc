"""MaxSim, `Matcher(matching="maxsim")`: oracles, kernel and twin; training; saving; errors."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.cli.options import MatcherOptions
from diml.explain.explanation import Explanation
from diml.explain.shown_plan import shown_plan
from diml.matching import Matcher, Regions, match, matcher, native
from diml.matching.maxsim import maxsim_plan
from diml.objectives import StructuralDistance, StructuralSimilarity, build_objective, pack_regions
from kernel_twin import assert_scores_stand_alone, by_twin, images, needs_kernel

MATCHINGS = pytest.mark.parametrize("matching", ["maxsim", "maxsim_query"])
WEIGHTS = pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
KINDS = pytest.mark.parametrize("kind", [StructuralSimilarity, StructuralDistance])


def packed(side):
    return torch.cat([side.dense, side.pooled.unsqueeze(1)], dim=1)


def compared(ours, query, gallery):
    """Row by row, by the kernel, with plans and cosines."""
    row = torch.arange(len(query))
    solver = native.SolverSettings(**ours.solver, matching=ours.matching)
    uniform = ours.weights == "uniform"
    pairs = native.PairIndices(row, row)
    return native.compare(packed(query), packed(gallery), pairs, solver, uniform=uniform, keep_cosine=True)


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def naive_plan(cosine, weight_q, weight_g, matching):
    """One pair, region by region."""
    rows, columns = cosine.shape
    plan = [[0.0] * columns for _ in range(rows)]
    for i in range(rows):
        best = [j for j in range(columns) if cosine[i, j] == max(cosine[i].tolist())]
        for j in best:
            plan[i][j] += float(weight_q[i]) / len(best) * (0.5 if matching == "maxsim" else 1)
    for j in range(columns if matching == "maxsim" else 0):
        best = [i for i in range(rows) if cosine[i, j] == max(cosine[:, j].tolist())]
        for i in best:
            plan[i][j] += float(weight_g[j]) / len(best) / 2
    return torch.tensor(plan, dtype=cosine.dtype)


# ------------------------------------------------------------------------------------------------- what it is


@MATCHINGS
@WEIGHTS
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 9), (16, 16)], ids=str)
def test_it_is_the_naive_loop(matching, weights, shape):
    query, gallery = (images(3, n, seed=n + k, dtype=torch.float64) for k, n in enumerate(shape))
    found = match(query, gallery, matching=matching, weights=weights)
    for k in range(3):
        expected = naive_plan(found.cosine[k], found.weight_q[k], found.weight_g[k], matching)
        close(found.plan[k], expected, 1e-12)
        close(found.structural[k], (expected * found.cosine[k]).sum(), 1e-12)
    assert found.potential_q is None
    assert found.unmatched_q is None


@MATCHINGS
def test_ties_share_the_mass_equally(matching):
    cosine = torch.tensor([[[0.5, 0.5, 0.0], [0.5, 0.25, 0.0]]])
    weight_q, weight_g = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.25, 0.25]])
    plan = maxsim_plan(cosine, weight_q, weight_g, matching)
    assert torch.equal(plan[0], naive_plan(cosine[0], weight_q[0], weight_g[0], matching))
    of_query = torch.tensor([[0.125, 0.125, 0], [0.75, 0, 0]])
    of_gallery = torch.tensor([[0.25, 0.25, 0.125], [0.25, 0, 0.125]])
    assert torch.equal(plan[0], of_query if matching == "maxsim_query" else (of_query + of_gallery) / 2)


def test_colbert_is_the_sum_over_the_query_of_the_largest_cosine():
    query, gallery = images(1, 5), images(6, 9, seed=1)
    scores = Matcher(matching="maxsim_query", weights="uniform", structural_weight=5).score(
        query, gallery, torch.arange(6)[None]
    )
    late = torch.einsum("rd,ngd->nrg", query.dense[0], gallery.dense).amax(dim=2).sum(dim=1)
    close(scores[0], query.pooled[0] @ gallery.pooled.T + late, 1e-5)


def test_the_solver_settings_are_not_used():
    sides = images(3), images(3, seed=1)
    first = Matcher(matching="maxsim").match(*sides)
    for unused in ({"epsilon": 0}, {"epsilon": 1e-4, "tolerance": 1e-9, "max_iterations": 1}):
        other = Matcher(matching="maxsim", **unused).match(*sides)
        assert torch.equal(other.plan, first.plan)
        assert other.converged.all()
        assert (other.iterations == 0).all()
        assert (other.marginal_error == 0).all()
    assert first.iterations.dtype == torch.int64


def test_a_region_that_nobody_chooses_receives_nothing():
    """Two regions of the query resemble one of the gallery image: column sums are not the weights."""
    vectors = torch.eye(3)
    query = Regions(vectors[None, [0, 0]], vectors[None, 0])
    gallery = Regions(vectors[None, [0, 1]], vectors[None, 0])
    found = match(query, gallery, matching="maxsim_query", weights="uniform")
    assert found.plan[0].tolist() == [[0.5, 0.0], [0.5, 0.0]]
    assert float(found.structural) == 1.0


@MATCHINGS
@pytest.mark.parametrize("size", [1, 4, 16])
def test_blank_and_equal_images(matching, size):
    blank = Regions(torch.zeros(2, size, 8), torch.zeros(2, 8))
    found = match(blank, blank, matching=matching)
    close(found.score, torch.zeros(2), 0)
    close(found.plan, torch.full((2, size, size), 1 / size**2), 1e-7)
    given = images(2, size)
    itself = match(given, given, matching=matching)
    close(itself.structural, torch.ones(2), 1e-6)
    close(itself.plan, torch.diag_embed(itself.weight_q), 1e-6)


@MATCHINGS
def test_weights_may_be_given(matching):
    query, gallery = images(2, 3), images(2, 5, seed=1)
    weight_q, weight_g = torch.tensor([[1.0, 0, 3]]), torch.tensor([[0.0, 1, 1, 1, 1]])
    found = match(query, gallery, matching=matching, weights=(weight_q, weight_g))
    expected = naive_plan(found.cosine[1], weight_q[0] / 4, weight_g[0] / 4, matching)
    close(found.plan[1], expected, 1e-7)
    scores = Matcher(matching=matching).score(query, gallery, [[0], [1]], weights=(weight_q, weight_g))
    close(scores[:, 0], found.score, 1e-6)


# --------------------------------------------------------------------------------- one score in all functions


@MATCHINGS
@WEIGHTS
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int16, torch.int8], ids=str)
def test_match_score_rerank_and_unique_pairs_agree(matching, weights, stored):
    ours, given = Matcher(matching=matching, weights=weights), images(7)
    gallery = given.to(stored) if stored.is_floating_point else given.quantized(stored)
    rows = torch.arange(7).expand(7, 7)
    scores = ours.score(given, gallery, rows)
    limit = {torch.float32: 1e-6, torch.float16: 2e-3, torch.int16: 1e-3, torch.int8: 3e-2}[stored]
    for i in range(7):
        close(scores[i], ours.match(given[i : i + 1], given).score, limit)
    ranking = ours.rerank(given, gallery, rows)
    assert torch.equal(ranking.scores, scores.sort(dim=1, descending=True).values)
    unique = ours.score_unique_pairs(gallery, torch.arange(7), rows)
    close(unique.scores, scores, max(limit, 1e-5))
    assert unique.converged.all()


def test_the_query_side_alone_depends_on_which_image_is_the_query():
    given, ours = images(8, 5), Matcher(matching="maxsim_query")
    assert not ours.symmetric
    assert Matcher(matching="maxsim").symmetric
    rows = torch.arange(8).expand(8, 8)
    scores = ours.score(given, given, rows)
    assert (scores - scores.T).abs().max() > 1e-3
    close(ours.score_unique_pairs(given, torch.arange(8), rows).scores, scores, 1e-6)


# ----------------------------------------------------------------------------------------- kernel and twin


@needs_kernel
@settings(max_examples=60)
@given(
    regions_q=st.integers(1, 20) | st.just(49),
    regions_g=st.integers(1, 20) | st.just(49),
    dim=st.integers(8, 40),
    stored=st.sampled_from([torch.float32, torch.float16, torch.int16, torch.int8]),
    weights=st.sampled_from(["cross_correlation", "uniform"]),
    matching=st.sampled_from(["maxsim", "maxsim_query"]),
    seed=st.integers(0, 1000),
)
def test_scores_of_the_kernel_are_those_of_torch(regions_q, regions_g, dim, stored, weights, matching, seed):
    ours = Matcher(matching=matching, weights=weights)
    query, gallery = images(3, regions_q, dim, seed), images(11, regions_g, dim, seed + 1)
    gallery = gallery.to(stored) if stored.is_floating_point else gallery.quantized(stored)
    rows = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(seed))
    first = matcher._score_native(ours, query, gallery, torch.arange(3).repeat_interleave(9), rows.flatten())
    second = by_twin(lambda: matcher._score_torch(ours, query, gallery, rows))
    close(first.scores.view(3, 9), second.scores, 1e-6)
    assert first.converged.all()


@needs_kernel
@MATCHINGS
@WEIGHTS
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 9), (16, 16), (17, 15), (49, 49)], ids=str)
def test_every_instruction_set_makes_the_plans_of_the_twin(instruction_set, matching, weights, shape):
    ours = Matcher(matching=matching, weights=weights)
    query, gallery = images(20, shape[0], seed=1), images(20, shape[1], seed=2)
    found, expected = compared(ours, query, gallery), by_twin(lambda: ours.match(query, gallery))
    close(found.plan, expected.plan, 1e-6)
    close(found.cosine, expected.cosine, 1e-6)
    close(found.scores.structural, expected.structural, 1e-6)
    assert not found.scores.marginal_error.any()
    assert not found.scores.iterations.any()
    assert found.scores.converged.all()
    assert not found.scores.too_wide.any()


@needs_kernel
@MATCHINGS
@WEIGHTS
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (16, 16), (17, 49), (49, 64)], ids=str)
def test_plans_of_the_kernel_have_the_twins_bits_for_its_own_cosines_ties_included(
    instruction_set, matching, weights, shape
):
    """One-hot vectors, some of them blank: all cosines are exactly 0 or 1, in ties of many sizes."""
    ours, generator = Matcher(matching=matching, weights=weights), torch.Generator().manual_seed(0)
    eye = torch.cat([torch.eye(8), torch.zeros(1, 8)])
    dense_q, dense_g = (eye[torch.randint(0, 9, (21, size), generator=generator)] for size in shape)
    query, gallery = (Regions.normalized(dense, dense.mean(dim=1) + 0.01) for dense in (dense_q, dense_g))
    found = compared(ours, query, gallery)
    given_to_twin = by_twin(lambda: ours.match(query, gallery))
    assert torch.equal(found.cosine, given_to_twin.cosine)
    close(found.plan, given_to_twin.plan, 1e-6)
    assert torch.equal(found.plan > 0, given_to_twin.plan > 0)
    if weights == "uniform":
        uniform = (torch.full((21, size), 1 / size) for size in shape)
        assert torch.equal(found.plan, maxsim_plan(found.cosine, *uniform, matching))


@needs_kernel
@MATCHINGS
def test_a_score_does_not_depend_on_its_companions_or_the_number_of_threads(instruction_set, matching):
    assert_scores_stand_alone(Matcher(matching=matching))


@needs_kernel
def test_no_plan_is_made_by_maxsim_from_costs():
    cost, weight = torch.rand(1, 2, 2), torch.full((1, 2), 0.5)
    with pytest.raises(ValueError, match=r"settings\.plan: need entropic for given costs"):
        native.solve(cost, weight, weight, native.SolverSettings(0.05, 1e-5, 10, matching="maxsim"))


# ------------------------------------------------------------------------------------------------- training


@needs_kernel
@KINDS
@MATCHINGS
@WEIGHTS
def test_training_values_and_gradients_of_the_kernel_are_those_of_torch(kind, matching, weights):
    distance, results = kind(9, Matcher(matching=matching, weights=weights)), []
    factor = torch.linspace(-1, 2, 25).view(5, 5)
    for patched in (False, True):
        sides = [pack_regions(images(5, 9, seed=seed)).detach().requires_grad_() for seed in (0, 1)]
        with pytest.MonkeyPatch.context() as patch:
            if patched:
                patch.setattr(native, "suits", lambda *tensors: False)
            values = distance(*sides)
            itself = distance(sides[0], sides[0]).triu(1) + distance(sides[0], sides[0]).tril(-1)
        ((values + itself) * factor).sum().backward()
        results.append([values.detach(), itself.detach(), *(side.grad for side in sides)])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=2e-5)


@KINDS
@MATCHINGS
@WEIGHTS
def test_gradients_are_those_of_autograd_with_the_plan_fixed(kind, matching, weights):
    """Through the chosen cosines only; values and gradients against the definition in float64."""
    ours = Matcher(matching=matching, weights=weights, structural_weight=3)
    distance = kind(9, ours)
    sides = [pack_regions(images(5, 9, seed=seed)).detach().requires_grad_() for seed in (0, 1)]
    factor = torch.linspace(-1, 2, 25).view(5, 5)
    values = distance(*sides)
    (values * factor).sum().backward()
    doubles = [side.detach().double().requires_grad_() for side in sides]
    dense_q, dense_g = (side.view(5, 10, 24)[:, :-1] for side in doubles)
    pooled_q, pooled_g = (side.view(5, 10, 24)[:, -1] for side in doubles)
    cosine, pooled = torch.einsum("qrd,pgd->qprg", dense_q, dense_g), pooled_q @ pooled_g.T
    plans = torch.stack(
        [ours.match(Regions(dense_q[[i]], pooled_q[[i]]), Regions(dense_g, pooled_g)).plan for i in range(5)]
    )
    if kind is StructuralDistance:
        cosine, pooled = (((2 - 2 * value).clamp(min=0) + 1e-6).sqrt() for value in (cosine, pooled))
    expected = (3 * (plans * cosine).sum(dim=(2, 3)) + pooled) / 4
    (expected * factor).sum().backward()
    close(values.detach().double(), expected.detach(), 1e-5)
    for single, double in zip(sides, doubles, strict=True):
        close(single.grad.double(), double.grad, 1e-4)
    assert distance.unconverged_pairs == 0


@KINDS
@MATCHINGS
def test_a_batch_with_itself_is_every_ordered_pair(kind, matching):
    flat = pack_regions(images(6, 9))
    distance = kind(9, Matcher(matching=matching))
    both = distance(flat, flat)
    close(both, distance(flat, flat.clone()), 1e-4)  # a root near 0 on the diagonal
    rows, columns = (index.flatten() for index in torch.meshgrid(*[torch.arange(6)] * 2, indexing="ij"))
    close(both, distance.pairwise_distance(flat[rows], flat[columns]).view(6, 6), 1e-4)
    assert ((both - both.T).abs().max() > 1e-3) == (matching == "maxsim_query")


@MATCHINGS
def test_the_pairs_that_are_asked_for_have_their_values(matching):
    flat, distance = pack_regions(images(12, 9)), StructuralSimilarity(9, Matcher(matching=matching))
    with distance.sharing():
        distance.only(torch.tensor([[3, 7, 11], [7, 3, 0]]))
        found = distance(flat, flat)
    full = distance(flat, flat.clone())
    for i, j in ((3, 7), (7, 3), (11, 0)):
        close(found[i, j], full[i, j], 1e-5)


@MATCHINGS
@pytest.mark.parametrize("name", ["multisimilarity_diml", "margin_diml"])
def test_an_objective_trains_with_it(name, matching):
    features = torch.randn(8, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    objective = build_objective(
        name,
        num_classes=4,
        embedding_dim=16,
        num_regions=4,
        matcher={"matching": matching},
        generator=torch.Generator(),
    )
    value = objective(Regions.normalized(features, features.mean(dim=1)), torch.arange(8) // 2)
    gradient = torch.autograd.grad(value, features)[0]
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


# ---------------------------------------------------------------------------------------------- explanations


@MATCHINGS
@pytest.mark.parametrize("plan", ["exact", "scored"])
def test_the_plan_that_scores_is_the_one_that_is_shown(matching, plan):
    found = Matcher(matching=matching, structural_weight=4).match(images(2), images(2, seed=1))
    shown = shown_plan(found, 1, plan)
    assert torch.equal(shown.plan, found.plan[1:])
    assert shown.scored is None
    assert shown.note() == ""
    assert shown.plan_shown == ("MaxSim" if matching == "maxsim" else "one-sided MaxSim")
    assert Explanation.of(found).summary().plan == shown.plan_shown


# ----------------------------------------------------------------------------------------- saving and errors


@pytest.mark.parametrize("matching", ["transport", "maxsim", "maxsim_query"])
def test_the_setting_survives_saving(matching):
    ours = Matcher(matching=matching)
    assert Matcher.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


def test_settings_saved_without_it_mean_transport():
    old = {name: value for name, value in Matcher().to_dict().items() if name != "matching"}
    assert Matcher.from_dict(old) == Matcher()
    assert Matcher().matching == "transport"


@pytest.mark.parametrize("matching", ["MaxSim", "", None, "chamfer"])
def test_other_kinds_are_refused(matching):
    with pytest.raises(ValueError, match=r"matching: need one of \('transport', 'maxsim', 'maxsim_query'\), got"):
        Matcher(matching=matching)


@MATCHINGS
@pytest.mark.parametrize("share", [0.8, "auto"])
def test_a_share_needs_transport(matching, share):
    message = rf"share: need 1 with matching '{matching}', .* got {share!r}; use share=1, or matching='transport'"
    with pytest.raises(ValueError, match=message):
        Matcher(matching=matching, share=share)
    with pytest.raises(ValueError, match="share: need 1"):
        replace(Matcher(share=share), matching=matching)


def test_it_is_a_flag_of_all_commands():
    options = MatcherOptions(matching="maxsim")
    assert options.applied_to(Matcher(epsilon=0.02)) == Matcher(epsilon=0.02, matching="maxsim")
    told = "Matcher as given on the command line: matching maxsim (the model's own: transport)"
    assert options.notice(Matcher()) == told
