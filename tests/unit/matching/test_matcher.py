"""`Matcher`: its settings, `match`, `score` and `rerank`: shapes, degenerate inputs, warnings, refusals."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest
import torch

from diml.matching import ConvergenceWarning, Matcher, Regions, match, matcher, nearest, rerank
from diml.matching.matcher import LARGEST_WEIGHT
from diml.matching.transport import SMALLEST_EPSILON
from laws.strategies import KINDS, pair
from scores import score

FIELDS = ("plan", "cosine", "structural", "pooled", "score", "weight_q", "weight_g", "marginal_error")


class Elsewhere(torch.Tensor):
    """A tensor that says it lives on another device."""

    device = torch.device("cuda", 1)


def images(count=5, regions=4, dim=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(count, regions, dim, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1)).to(dtype)


def close(actual, expected, atol=1e-6):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def mixed(rows=6, columns=9, dim=5, dtype=torch.float32):
    """One pair of each kind, ordinary to degenerate, in one batch."""
    sides = [pair(kind, rows, columns, dim, seed, dtype) for seed, kind in enumerate(KINDS)]
    return tuple(Regions.cat(side) for side in zip(*sides, strict=True))


# ------------------------------------------------------------------------------------------------------ match


@pytest.mark.parametrize(("query", "gallery", "pairs"), [(5, 5, 5), (1, 5, 5), (5, 1, 5), (1, 1, 1), (0, 0, 0)])
@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
def test_one_side_may_be_a_single_image(query, gallery, pairs, weights):
    found = match(images(query), images(gallery, regions=9, seed=1), weights=weights)
    assert len(found) == pairs
    assert found.plan.shape == found.cosine.shape == (pairs, 4, 9)
    assert found.weight_q.shape == (pairs, 4)
    assert found.weight_g.shape == (pairs, 9)
    for name in ("structural", "pooled", "score", "marginal_error", "iterations", "converged"):
        assert getattr(found, name).shape == (pairs,), name
    assert (found.grid_q, found.grid_g) == ((2, 2), (3, 3))


def test_no_images_against_one_are_no_pairs():
    assert len(match(images(1), images(0))) == len(match(images(0), images(1))) == 0


def test_rows_are_the_query_and_the_score_is_the_sum_of_both_terms():
    query, gallery = images(3), images(3, regions=9, seed=1)
    found = match(query, gallery)
    close(found.cosine, query.dense @ gallery.dense.mT)
    close(found.pooled, (query.pooled * gallery.pooled).sum(dim=1))
    close(found.structural, (found.plan * found.cosine).sum(dim=(1, 2)))
    close(found.score, found.pooled + found.structural)
    close(found.plan.sum(dim=2), found.weight_q)
    close(found.plan.sum(dim=1), found.weight_g, 1e-5)


def test_swapping_the_sides_transposes_the_plan_to_within_the_tolerance():
    query, gallery = images(5), images(5, regions=9, seed=1)
    there, back = match(query, gallery), match(gallery, query)
    close(back.plan, there.plan.mT, 5e-4)
    close(back.score, there.score, 5e-4)


def test_weights_come_from_the_other_image():
    query, gallery = images(3), images(3, regions=9, seed=1)
    found = match(query, gallery)
    mass_q = torch.einsum("brd,bd->br", query.dense, gallery.pooled).relu()
    mass_g = torch.einsum("brd,bd->br", gallery.dense, query.pooled).relu()
    close(found.weight_q, mass_q / mass_q.sum(dim=1, keepdim=True))
    close(found.weight_g, mass_g / mass_g.sum(dim=1, keepdim=True))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("scale", [1, 30])
def test_weights_can_be_given(count, scale):
    query, gallery = images(), images(seed=1)
    weight_q = torch.rand(count, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    weight_g = torch.tensor([[0, 0, 1, 3]])
    found = match(query, gallery, weights=(scale * weight_q, scale * weight_g))
    close(found.weight_q, (weight_q / weight_q.sum(dim=1, keepdim=True)).expand(5, -1))
    close(found.weight_g, torch.tensor([[0, 0, 0.25, 0.75]]).expand(5, -1))
    close(found.plan.sum(dim=2), found.weight_q)
    close(found.plan.sum(dim=1), found.weight_g, 1e-5)


def test_weights_of_zero_become_uniform():
    found = match(images(), images(seed=1), weights=(torch.zeros(1, 4), torch.zeros(5, 4)))
    uniform = match(images(), images(seed=1), weights="uniform")
    assert torch.equal(found.plan, uniform.plan)


def test_settings_reach_the_solver():
    query, gallery = images(), images(seed=1)
    assert match(query, gallery, max_iterations=2).iterations.max() == 2
    assert match(query, gallery, tolerance=1e-2).iterations.sum() < match(query, gallery).iterations.sum()
    assert match(query, gallery, epsilon=0.3).structural.mean() < match(query, gallery).structural.mean()


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, torch.float16, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_numbers_are_float32_or_better(left, right, expected):
    query, gallery = images(dtype=left), images(seed=1, dtype=right)
    found = match(query, gallery)
    for name in FIELDS:
        assert getattr(found, name).dtype == expected, name
    assert score(query, gallery, torch.zeros(5, 1, dtype=torch.int64)).dtype == expected


def test_autocast_changes_neither_score_nor_gradient():
    def result(autocast):
        leaf = torch.randn(3, 6, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            regions = Regions.from_maps(leaf)
            score = match(regions, regions[[1, 2, 0]]).score
        return score, torch.autograd.grad(score.sum(), leaf)[0]

    for plain, cast in zip(result(False), result(True), strict=True):
        assert torch.equal(cast, plain)


def test_the_plan_and_its_weights_carry_no_gradient():
    leaf = torch.randn(3, 6, 2, 2).requires_grad_()
    regions = Regions.from_maps(leaf)
    found = match(regions, regions[[1, 2, 0]])
    for name in ("plan", "weight_q", "weight_g", "marginal_error"):
        assert not getattr(found, name).requires_grad, name
    for name in ("cosine", "structural", "pooled", "score"):
        assert getattr(found, name).requires_grad, name


@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
def test_companions_do_not_matter_in_float32_either(weights):
    query, gallery = mixed()
    together = match(query, gallery, weights=weights)
    assert len(set(together.iterations.tolist())) >= 3  # the batch really is of mixed difficulty
    for i in range(len(query)):
        close(match(query[i], gallery[i], weights=weights).score, together.score[i : i + 1])
        fewer = match(query[: i + 1], gallery[: i + 1], weights=weights)
        close(fewer.score, together.score[: i + 1])


# ----------------------------------------------------------------------------------------- degenerate inputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 8), (1, 9, 4), (4, 1, 4), (5, 9, 3), (196, 196, 16), (16, 49, 8)])
@pytest.mark.parametrize(
    ("dtype", "epsilon"), [(torch.float32, 0.05), (torch.float32, 1e-3), (torch.float16, 0.05), (torch.float64, 1e-3)]
)
@pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])
def test_degenerate_pairs_are_finite_of_the_right_shape_and_flagged(kind, shape, dtype, epsilon, weights):
    rows, columns, dim = shape
    query, gallery = pair(kind, rows, columns, dim, 7, dtype)
    leaf = query.dense.clone().requires_grad_()
    found = match(Regions(leaf, query.pooled), gallery, weights=weights, epsilon=epsilon, max_iterations=10)
    assert found.plan.shape == (1, rows, columns)
    for name in FIELDS:
        assert torch.isfinite(getattr(found, name)).all(), name
    assert torch.equal(found.converged, found.marginal_error <= 4e-6)
    found.score.sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_blank_images_match_with_a_score_of_zero():
    blank = Regions(torch.zeros(2, 4, 8), torch.zeros(2, 8))
    for other in (blank, images(2)):
        found = match(blank, other)
        close(found.weight_q, torch.full((2, 4), 0.25))
        close(found.score, torch.zeros(2), 0)
        close(found.plan, torch.full((2, 4, 4), 1 / 16))


def test_an_image_and_its_negative_score_minus_two():
    query = Regions.normalized(torch.ones(1, 4, 8), torch.ones(1, 8))
    close(match(query, Regions(-query.dense, -query.pooled)).score, torch.tensor([-2.0]))
    close(match(query, query).score, torch.tensor([2.0]))


@pytest.mark.parametrize("kind", ["random", "similar"])
@pytest.mark.parametrize("epsilon", [0.05, 1e-3], ids=["plain", "log"])
def test_pairs_that_were_cut_short_are_flagged(kind, epsilon):
    query, gallery = pair(kind, 9, 9, 4, 0, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the flag is the message
        found = match(query, gallery, epsilon=epsilon, max_iterations=1)
    assert not found.converged.any()
    assert (found.marginal_error > 1e-4).all()


# ----------------------------------------------------------------------------------------------------- rerank


@pytest.mark.parametrize("block_bytes", [1, 1_000, 3_000, 10_000, 64 * 2**20])
@pytest.mark.parametrize("candidates", [1, 3, 7])
def test_each_query_is_scored_against_its_own_candidates(block_bytes, candidates, monkeypatch):
    monkeypatch.setattr(matcher, "BLOCK_BYTES", block_bytes)
    query, gallery = images(4), images(11, regions=9, seed=1)
    chosen = torch.randint(0, 11, (4, candidates), generator=torch.Generator().manual_seed(0))
    finer = {"tolerance": 1e-6}  # rounding may decide the last iteration, and so a marginal error
    scores = score(query, gallery, chosen, **finer)
    for i in range(4):
        for k in range(candidates):
            close(scores[i, k], match(query[i], gallery[int(chosen[i, k])], **finer).score[0])


@pytest.mark.parametrize("weight", [0, 0.5, 1, 4, float("inf")])
def test_the_score_is_pooled_plus_weight_times_structural(weight):
    query, gallery = images(4), images(4, seed=1)
    found = match(query, gallery, structural_weight=weight)
    expected = found.structural if weight == float("inf") else found.pooled + weight * found.structural
    close(found.score, expected)
    close(score(query, gallery, torch.arange(4)[:, None], structural_weight=weight)[:, 0], expected)
    ledger = found.ledger(2)
    assert ledger.score == pytest.approx(float(expected[2]), abs=1e-6)
    assert ledger.structural == pytest.approx(float(found.structural[2]), abs=1e-6)


@pytest.mark.parametrize("changed", [{"weights": "uniform"}, {"epsilon": 0.1}, {"tolerance": 1e-2}])
def test_rerank_hands_settings_on(changed):
    query, gallery, own = images(4), images(4, seed=1), torch.arange(4)[:, None]
    usual = {"epsilon": 0.2}
    scores = score(query, gallery, own, **usual | changed)[:, 0]
    close(scores, match(query, gallery, **usual | changed).score)
    assert not torch.equal(scores, score(query, gallery, own, **usual)[:, 0])


@pytest.mark.parametrize(("queries", "gallery", "candidates"), [(4, 5, 0), (0, 5, 3), (4, 0, 0), (0, 0, 0)])
def test_empty_candidate_lists_give_empty_scores(queries, gallery, candidates):
    chosen = torch.zeros(queries, candidates, dtype=torch.int64)
    scores = score(images(queries), images(gallery), chosen)
    assert scores.shape == (queries, candidates)
    assert scores.dtype == torch.float32


def test_rerank_copes_with_any_mixture_of_pairs():
    query, gallery = mixed()
    everything = torch.arange(len(gallery)).expand(len(query), -1)
    scores = score(query, gallery, everything, epsilon=0.2)
    assert torch.isfinite(scores).all()
    close(scores.diagonal(), match(query, gallery, epsilon=0.2).score)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_candidates_may_be_of_any_integer_type(dtype):
    query, gallery = images(4), images(2, seed=1)
    chosen = torch.tensor([[0, 1], [1, 0], [1, 1], [0, 0]])
    close(score(query, gallery, chosen.to(dtype)), score(query, gallery, chosen))


def test_rerank_keeps_no_gradient():
    regions = Regions.from_maps(torch.randn(2, 64, 2, 2).requires_grad_())
    assert not score(regions, regions, torch.tensor([[0], [1]])).requires_grad


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_scoring_warns_once_of_the_pairs_that_stopped_at_max_iterations(block_bytes, monkeypatch):
    monkeypatch.setattr(matcher, "BLOCK_BYTES", block_bytes)
    query, gallery = images(4), images(4, seed=1)
    chosen = torch.arange(4).expand(4, 4)
    each = [match(query[i], gallery, max_iterations=5) for i in range(4)]
    unfinished = sum(int((~found.converged).sum()) for found in each)
    assert 0 < unfinished < 16
    with pytest.warns(ConvergenceWarning, match="pairs stopped at max_iterations; raise") as caught:
        scores = score(query, gallery, chosen, max_iterations=5)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{unfinished} ")
    assert torch.isfinite(scores).all()


def test_the_warning_points_at_the_caller():
    with pytest.warns(ConvergenceWarning) as caught:
        Matcher(max_iterations=1).score(images(4), images(4, seed=1), torch.arange(4)[:, None])
    assert caught[0].filename == __file__
    with pytest.warns(ConvergenceWarning) as caught:
        Matcher(max_iterations=1).rerank(images(4), images(4, seed=1), torch.arange(4)[:, None])
    assert caught[0].filename == __file__


# -------------------------------------------------------------------------------------------------- refusals

OWN = torch.zeros(5, 1, dtype=torch.int64)


@pytest.mark.parametrize("command", [match, lambda q, g, **s: score(q, g, OWN, **s)], ids=["match", "rerank"])
@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"epsilon": -0.1}, ValueError, r"epsilon: need a finite number of at least 0, got -0.1"),
        ({"epsilon": 1e-45}, ValueError, r"epsilon: need 0, for exact plans, or at least 1e-06, got 1e-45"),
        ({"epsilon": 9e-7}, ValueError, r"epsilon: need 0, for exact plans, or at least 1e-06, got 9e-07"),
        ({"structural_weight": 1e39}, ValueError, r"structural_weight: need at most 1e\+06, or inf"),
        ({"tolerance": -1.0}, ValueError, r"tolerance: need a positive, finite number, got -1.0"),
        ({"max_iterations": 0}, ValueError, r"max_iterations: need an integer of at least 1, got 0"),
        ({"weights": "cc"}, ValueError, r"weights: need one of .*, got 'cc'"),
        ({"weights": None}, ValueError, r"weights: need one of .*, got None"),
        ({"iterations": 3}, TypeError, r"unexpected keyword argument 'iterations'"),
    ],
)
def test_wrong_settings_are_refused(command, settings, error, words):
    with pytest.raises(error, match=words):
        command(images(), images(seed=1), **settings)


@pytest.mark.parametrize(("place", "name"), [(0, "weight_q"), (1, "weight_g")])
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (torch.ones(5, 3), r"needs shape \(5 or 1, 4\), got \(5, 3\)"),
        (torch.ones(2, 4), r"needs shape \(5 or 1, 4\), got \(2, 4\)"),
        (torch.ones(4), r"needs shape \(5 or 1, 4\), got \(4,\)"),
        (torch.tensor([[1, 1, 1, -0.1]]), r"needs finite, non-negative weights; clamp"),
        (torch.tensor([[1, 1, 1, float("nan")]]), r"needs finite, non-negative weights"),
        (torch.tensor([[1, 1, 1, float("inf")]]), r"needs finite, non-negative weights"),
    ],
)
def test_wrong_weights_are_refused(place, name, weights, words):
    given = [torch.ones(1, 4), torch.ones(1, 4)]
    given[place] = weights
    with pytest.raises(ValueError, match=rf"weights: {name} {words}"):
        match(images(), images(seed=1), weights=tuple(given))


@pytest.mark.parametrize("command", [match, lambda q, g: score(q, g, OWN)], ids=["match", "rerank"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("other", "error", "words"),
    [
        (torch.ones(5, 4, 8), TypeError, r"query, gallery: need Regions, got Tensor; diml.match"),
        ("photo.jpg", TypeError, r"query, gallery: need Regions, got str; diml.match"),
        (images(dim=7), ValueError, r"query, gallery: need one D and one device, got .*D [78] .*one model"),
        (
            Regions._trusted(*(t.as_subclass(Elsewhere) for t in (images().dense, images().pooled)), grid=None),
            ValueError,
            r"query, gallery: need one D and one device, got .*cuda:1.*one model",
        ),
    ],
    ids=["tensor", "path", "D", "device"],
)
def test_sides_that_cannot_be_compared_are_refused(command, swapped, other, error, words):
    sides = (other, images()) if swapped else (images(), other)
    with pytest.raises(error, match=words):
        command(*sides)


@pytest.mark.parametrize("counts", [(5, 4), (2, 5), (0, 2)])
def test_match_refuses_unequal_numbers_of_images(counts):
    with pytest.raises(ValueError, match=rf"query, gallery: need as many .*got {counts[0]} and {counts[1]}"):
        match(images(counts[0]), images(counts[1]))


@pytest.mark.parametrize(
    ("candidates", "error", "words"),
    [
        (OWN.float(), TypeError, r"need integer row numbers, got torch.float32; convert with .long\(\)"),
        (OWN.bool(), TypeError, r"need integer row numbers, got torch.bool; a mask becomes row numbers with .nonzero"),
        (OWN[:, 0], ValueError, r"need shape \(5, K\), got \(5,\)"),
        (OWN[:4], ValueError, r"need shape \(5, K\), got \(4, 1\)"),
        (OWN[None], ValueError, r"need shape \(5, K\), got \(1, 5, 1\)"),
        (OWN + 7, ValueError, r"need rows 0..6 of the gallery, got 7..7"),
        (OWN - 1, ValueError, r"need rows 0..6 of the gallery, got -1..-1"),
    ],
)
def test_wrong_candidates_are_refused(candidates, error, words):
    with pytest.raises(error, match=rf"candidates: {words}"):
        score(images(), images(7, seed=1), candidates)


@pytest.mark.parametrize(
    "convert",
    [
        lambda rows: rows.tolist(),
        lambda rows: tuple(map(tuple, rows.tolist())),
        lambda rows: rows.numpy(),
        lambda rows: rows.numpy().astype("uint16"),
        lambda rows: rows.numpy().astype("uint64"),
        lambda rows: rows.to(torch.uint32),
        lambda rows: list(rows.numpy()),
        lambda rows: list(rows),
    ],
)
def test_candidates_may_be_lists_and_arrays_everywhere(convert):
    gallery, matcher = images(7, seed=1), Matcher(epsilon=0.2)
    chosen, queries = torch.tensor([[0, 1], [6, 0], [1, 1]]), torch.tensor([3, 4, 0])
    close(matcher.score(gallery[:3], gallery, convert(chosen)), matcher.score(gallery[:3], gallery, chosen))
    expected = matcher.score_unique_pairs(gallery, queries, chosen).scores
    close(matcher.score_unique_pairs(gallery, queries.tolist(), convert(chosen)).scores, expected)
    close(matcher.score_unique_pairs(gallery, queries.numpy(), convert(chosen)).scores, expected)


@pytest.mark.parametrize("wrong", [[[0, 1], [2]], "ab", [["a"], ["b"]], None, [{}], [[0.5], [1.5]]])
def test_what_is_no_table_of_integers_is_told(wrong):
    with pytest.raises(TypeError, match="candidates: need integer row numbers"):
        score(images(2), images(7), wrong)
    with pytest.raises(TypeError, match="candidates: need integer row numbers"):
        Matcher().score_unique_pairs(images(7), [0, 1], wrong)


def test_the_last_row_of_the_gallery_can_be_a_candidate():
    assert score(images(), images(7, seed=1), OWN + 6).shape == (5, 1)


def test_two_weight_tensors_are_needed():
    with pytest.raises(ValueError, match=r"weights: need two tensors, .*, got \(tensor"):
        match(images(), images(seed=1), weights=(torch.ones(1, 4),))


# --------------------------------------------------------------------------------------------------- the Matcher


def test_a_matcher_is_plain_values_and_back():
    for settings in (Matcher(), Matcher(weights="uniform", epsilon=0.02, structural_weight=float("inf"))):
        assert Matcher.from_dict(json.loads(json.dumps(settings.to_dict(), allow_nan=False))) == settings
    assert Matcher.from_dict({}) == Matcher()
    assert Matcher.from_dict({"epsilon": "1e-2"}).epsilon == 0.01  # YAML reads 1e-2 as text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epsilom": 0.1}, "matcher: unknown setting 'epsilom'; did you mean epsilon"),
        ({"epsilon": "small"}, "matcher: epsilon needs a number, got 'small'"),
        ({"max_iterations": 2.5}, "matcher: max_iterations needs an integer, got 2.5"),
        ({"epsilon": -1}, "epsilon: need a finite number of at least 0"),
    ],
)
def test_wrong_plain_values_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        Matcher.from_dict(values)


def test_a_matcher_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Matcher().epsilon = 1.0


@pytest.mark.parametrize("convert", [lambda rows: rows, torch.Tensor.numpy, torch.Tensor.tolist])
def test_rerank_sorts_the_candidates_whatever_they_come_in(convert):
    query, gallery = images(4), images(11, seed=1)
    chosen = torch.stack([torch.randperm(11, generator=torch.Generator().manual_seed(q))[:5] for q in range(4)])
    scores = score(query, gallery, chosen)
    found = Matcher().rerank(query, gallery, convert(chosen))
    assert found.order.equal(chosen.gather(1, scores.argsort(dim=1, descending=True)))
    assert found.scores.equal(scores.sort(dim=1, descending=True).values)
    assert found.order.equal(rerank(query, gallery, chosen).order)


def test_rerank_keeps_the_end_of_a_short_gallery():
    regions = images(3)
    plain = nearest(regions, regions, 3, exclude=torch.arange(3))
    found = Matcher().rerank(regions, regions, plain.order)
    assert found.order[:, -1].tolist() == [-1, -1, -1]
    assert found.scores[:, -1].tolist() == [-float("inf")] * 3


def test_equal_scores_stand_in_gallery_order():
    gallery = images(3)[[0, 1, 0, 2, 0]]
    found = Matcher().rerank(images(1), gallery, [[4, 2, 0]])
    assert found.order.tolist() == [[0, 2, 4]]


def test_representations_are_short():
    query, gallery = images(300), images(300, seed=1)
    found = match(query, gallery)
    for thing in (query, query.quantized(), found, found.ledger(), nearest(query, gallery, 100)):
        assert len(repr(thing)) < 160, repr(thing)
    assert repr(query) == "Regions(300 images, 2 x 2 regions, D 8, float32, cpu)"
    assert found.ledger()._repr_html_().startswith("<table>")


@pytest.mark.parametrize("epsilon", [0.0, SMALLEST_EPSILON, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.filterwarnings("ignore::diml.matching.matcher.ConvergenceWarning")
def test_every_epsilon_that_is_allowed_gives_finite_scores(epsilon, dtype, share):
    settings = {"epsilon": epsilon, "share": share, "max_iterations": 50, "structural_weight": LARGEST_WEIGHT}
    found = match(images().to(dtype), images(seed=1).to(dtype), **settings)
    assert torch.isfinite(found.score).all()
    assert torch.isfinite(found.plan).all()
    assert float(found.plan.min()) >= 0
