"""Votes in the kernel: against its twin in torch and the readable method, for each instruction set; readings that are
kept."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from diml.matching import LearnedMatcher, Regions, native
from diml.matching.learned import VoteScorer
from diml.matching.readings import Readings, keep_readings, kept_readings
from kernel_twin import assert_scores_stand_alone, by_twin, images, needs_kernel

WEIGHTS = pytest.mark.parametrize("weights", ["cross_correlation", "uniform"])


def some_matcher(dim: int = 24, mapped: int | None = None, seed: int = 0) -> LearnedMatcher:
    generator = torch.Generator().manual_seed(seed)
    scorer = VoteScorer(dim, mapped)
    with torch.no_grad():
        for name, part in scorer.named_parameters():
            part.add_((0.1 if name.startswith("log") else 0.3) * torch.randn(part.shape, generator=generator))
    return LearnedMatcher.of(scorer)


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def all_rows(query, gallery):
    return torch.arange(len(gallery)).expand(len(query), -1)


# ------------------------------------------------------------------------------------------------- kernel and twin


@needs_kernel
@WEIGHTS
@pytest.mark.parametrize(
    ("regions_q", "regions_g", "dim", "mapped"),
    [(16, 16, 24, 24), (16, 16, 40, 7), (49, 9, 24, 24), (5, 33, 7, 12), (1, 3, 2, 1), (17, 64, 300, 260)],
)
def test_scores_are_those_of_the_twin_and_of_the_method(instruction_set, weights, regions_q, regions_g, dim, mapped):
    matcher = replace(some_matcher(dim, mapped), weights=weights)
    query, gallery = images(3, regions_q, dim), images(21, regions_g, dim, seed=1)
    found = matcher.score(query, gallery, all_rows(query, gallery))
    close(found, by_twin(lambda: matcher.score(copy.copy(query), copy.copy(gallery), all_rows(query, gallery))))
    close(found, torch.stack([matcher.match(query[row], gallery).score for row in range(3)]))


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float16, torch.int16, torch.int8])
def test_stored_types_are_read_as_they_are(instruction_set, dtype):
    matcher, query, gallery = some_matcher(), images(2), images(20, seed=1)
    stored = gallery.to(dtype) if dtype.is_floating_point else gallery.quantized(dtype)
    exact = stored[torch.arange(20)].to(torch.float32)
    rows = all_rows(query, gallery)
    close(matcher.score(query, stored, rows), matcher.score(query, exact, rows))
    kept = kept_readings(stored, matcher.scorer_id)
    close(kept.dustbin, kept_readings(exact, matcher.scorer_id).dustbin)
    one = matcher.score_unique_pairs(stored, [0, 3], [[1, 2], [4, 5]]).scores
    close(one, by_twin(lambda: matcher.score_unique_pairs(copy.copy(stored), [0, 3], [[1, 2], [4, 5]]).scores))


@needs_kernel
@WEIGHTS
def test_plans_are_those_of_the_method(instruction_set, weights):
    matcher = replace(some_matcher(), weights=weights)
    query, gallery = images(1, 9), images(20, 16, seed=1)
    readings, folded = matcher.readings(gallery), matcher._folded(gallery.pooled)
    plan, row = torch.empty(20, 9, 16), torch.arange(20)
    found = native.score(
        native.StoredRegions(query.dense, query.pooled),
        native.StoredRegions(gallery.dense, gallery.pooled),
        native.PairIndices(torch.zeros_like(row), row),
        native.SolverSettings(epsilon=folded.temperature, tolerance=1, max_iterations=1, matching="votes"),
        uniform=weights == "uniform",
        votes=native.VoteInputs(folded.weights, 1 / readings.length, readings.dustbin),
        plan=plan,
    )
    expected = matcher.match(query, gallery)
    close(plan, expected.plan)
    close(found.structural, expected.structural)
    close(found.pooled, expected.pooled)
    assert found.converged.all()
    assert (found.iterations == 0).all()


@needs_kernel
def test_scores_stand_alone_and_copies_score_the_same(instruction_set):
    matcher, gallery = some_matcher(), images(40, seed=1)
    assert_scores_stand_alone(matcher)
    copies = Regions.cat([gallery, gallery])
    scores = matcher.score(images(2), copies, all_rows(images(2), copies))
    assert torch.equal(scores[:, :40], scores[:, 40:])
    unique = matcher.score_unique_pairs(copies, torch.arange(80), torch.arange(80).expand(80, -1)).scores
    assert torch.equal(unique[:40], unique[40:])
    assert torch.equal(unique[:, :40], unique[:, 40:])


@needs_kernel
def test_extreme_scorers_have_finite_scores_as_the_twin(instruction_set):
    query, gallery = images(2), images(20, seed=1)
    blank = Regions(torch.zeros(1, 16, 24), torch.zeros(1, 24))
    gallery = Regions.cat([gallery, blank])
    for height, temperature in ((-50.0, -10.0), (50.0, -10.0), (0.3, 10.0)):
        scorer = VoteScorer(24)
        with torch.no_grad():
            scorer.height.fill_(height)
            scorer.log_temperature.fill_(temperature)
        matcher = LearnedMatcher.of(scorer)
        found = matcher.score(query, gallery, all_rows(query, gallery))
        assert torch.isfinite(found).all()
        close(found, by_twin(lambda: matcher.score(query, copy.copy(gallery), all_rows(query, gallery))))  # noqa: B023


@needs_kernel
def test_it_refuses_what_does_not_fit():
    gallery, matcher = images(3), some_matcher()
    folded, readings = matcher._folded(gallery.pooled), matcher.readings(gallery)
    sides = [native.StoredRegions(gallery.dense, gallery.pooled)] * 2
    pairs = native.PairIndices(torch.arange(3), torch.arange(3))
    votes = native.SolverSettings(epsilon=0.05, tolerance=1, max_iterations=1, matching="votes")
    inputs = native.VoteInputs(folded.weights, readings.length, readings.dustbin)
    for settings, given, message in (
        (votes, None, "votes: need them"),
        (replace(votes, matching="maxsim"), inputs, "votes: need them"),
        (votes, replace(inputs, dustbin=readings.length), "votes.dustbin"),
        (votes, replace(inputs, over_length=readings.dustbin), "votes.over_length"),
        (votes, replace(inputs, weights=replace(folded.weights, upper=torch.ones(25, 24))), "upper"),
        (votes, replace(inputs, weights=replace(folded.weights, inward=torch.ones(2, 23))), "inward"),
        (votes, replace(inputs, weights=replace(folded.weights, outward=torch.ones(2))), "outward"),
    ):
        with pytest.raises(ValueError, match=message):
            native.score(*sides, pairs, settings, uniform=False, votes=given)
    with pytest.raises(ValueError, match="need another one than votes"):
        native.compare(gallery.dense, gallery.dense, pairs, votes, uniform=False, keep_cosine=False)
    for wrong in ({"rows": torch.tensor([3])}, {"dustbin": torch.empty(3, 3)}, {"over_length": torch.empty(3, 3)}):
        whole = {"rows": torch.arange(3), "over_length": torch.empty(3, 17), "dustbin": torch.empty(3, 16)} | wrong
        with pytest.raises(ValueError, match=next(iter(wrong))):
            native.read(sides[0], weights=folded.weights, **whole)


# ------------------------------------------------------------------------------------------------- readings


@needs_kernel
@pytest.mark.parametrize(("regions", "dim", "mapped"), [(16, 24, 24), (49, 40, 7), (3, 5, 9)])
def test_readings_are_those_of_torch_and_of_the_map(instruction_set, regions, dim, mapped):
    matcher, gallery = some_matcher(dim, mapped), images(5, regions, dim)
    found = matcher.readings(gallery)
    expected = by_twin(lambda: matcher.readings(copy.copy(gallery)))
    close(found.length, expected.length)
    close(found.dustbin, expected.dustbin)
    plain = matcher.mapped(gallery.dense, gallery.pooled)
    close(found.dustbin, plain.dustbin)
    vectors = torch.cat([gallery.dense, gallery.pooled.unsqueeze(1)], dim=1)
    close(found.length, (vectors @ matcher.scorer.map.weight.T).norm(dim=2))


def test_readings_are_kept_with_their_images():
    matcher, query, gallery = some_matcher(), images(1), images(6, seed=1)
    rows = all_rows(query, gallery)
    expected = matcher.score(query, gallery, rows[:, :4])
    kept = kept_readings(gallery, matcher.scorer_id)
    assert kept.known.tolist() == [True] * 4 + [False] * 2
    stored = matcher.readings(gallery)
    other = copy.copy(gallery)
    missing = torch.tensor([False, True, False, False, False, False]).unsqueeze(1)
    keep_readings(other, matcher.scorer_id, Readings(stored.length.masked_fill(missing, torch.nan), stored.dustbin))
    assert kept_readings(other, matcher.scorer_id).known.tolist() == [True, False, True, True, True, True]
    close(matcher.score(query, other, rows[:, :4]), expected, 1e-6)
    another = some_matcher(seed=1)
    assert not torch.equal(another.score(query, other, rows[:, :4]), expected)
    assert kept_readings(other, another.scorer_id).scorer_id == another.scorer_id


@pytest.mark.parametrize("call", [lambda work: work(), by_twin])
def test_readings_survive_a_change_of_the_mode(call):
    matcher, query, gallery = some_matcher(), images(1), images(6, seed=1)
    rows = all_rows(query, gallery)
    with torch.inference_mode():
        call(lambda: matcher.score(query, gallery, rows[:, :3]))
    found = call(lambda: matcher.score(query, gallery, rows))
    close(found[0], matcher.match(query, gallery).score)


def test_float64_and_other_types_are_computed_in_torch():
    matcher, query, gallery = some_matcher(), images(2), images(5, seed=1)
    rows = all_rows(query, gallery)
    exact = matcher.score(query.to(torch.float64), gallery.to(torch.float64), rows)
    assert exact.dtype == torch.float64
    mixed = matcher.score(query.to(torch.float64), gallery, rows)
    assert mixed.dtype == torch.float64
    close(mixed, exact)
    close(matcher.score(query, gallery, rows), exact.float())
    assert matcher.score(query, gallery.to(torch.bfloat16), rows).isfinite().all()


def test_a_scorer_that_was_trained_further_is_folded_again():
    scorer, query, gallery = VoteScorer(24), images(1), images(4, seed=1)
    before = LearnedMatcher.of(scorer).score(query, gallery, all_rows(query, gallery))
    with torch.no_grad():
        scorer.map.weight.add_(0.2 * torch.randn(24, 24, generator=torch.Generator().manual_seed(0)))
    after = LearnedMatcher.of(scorer)
    found = after.score(query, gallery, all_rows(query, gallery))
    assert (found - before).abs().max() > 1e-3
    close(found[0], after.match(query, gallery).score)
