"""`Matcher.score_unique_pairs`: each pair once, whatever else is evaluated with it."""

import pytest
import torch

from diml.matching import Matcher, Regions, match, matcher, native
from diml.matching.pairs import by_content
from diml.matching.retrieval import NOTHING


def images(count=12, regions=4, dim=8):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(count, regions, dim, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1) + 0.3 * torch.randn(count, dim, generator=generator))


def everything(count=12):
    """All queries, each with all other images as candidates."""
    rows = torch.arange(count)
    return rows, torch.stack([torch.cat([rows[:row], rows[row + 1 :]]) for row in rows.tolist()])


@pytest.mark.parametrize("stored", ["float32", "float64", "int8", "int16"])
@pytest.mark.parametrize("compiled", [True, False])
def test_every_candidate_gets_the_score_of_its_pair(stored, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "_KERNEL", None)
        monkeypatch.setattr(native, "_REASON", "turned off by a test")
    kind = getattr(torch, stored)
    regions = images().to(kind) if kind.is_floating_point else images().quantized(kind)
    queries, candidates = everything()
    found = Matcher().score_unique_pairs(regions, queries, candidates)
    left, right = by_content(regions, queries.repeat_interleave(11), candidates.flatten())
    compared = regions[:]
    if stored == "int16":  # there, pooled vectors are rounded where they weigh regions
        compared = Regions(compared.dense, (compared.pooled * 32000).round() / 32000)
    expected = match(compared[left], compared[right])
    pooled = (regions.pooled[left] * regions.pooled[right]).sum(dim=1)
    torch.testing.assert_close(found.scores.flatten(), expected.structural + pooled, rtol=0, atol=1e-5)
    assert found.converged.flatten().equal(expected.converged)


def test_each_pair_is_solved_once(monkeypatch):
    seen = []

    def counting(settings, queries, regions, left, right):
        seen.extend(zip(left.tolist(), right.tolist(), strict=True))
        return real(settings, queries, regions, left, right)

    real = matcher._score_pairs
    monkeypatch.setattr(matcher, "_score_pairs", counting)
    monkeypatch.setattr(matcher, "PAIRS_AT_ONCE", 5)
    Matcher().score_unique_pairs(images(), *everything())
    assert len(seen) == len({frozenset(pair) for pair in seen}) == 12 * 11 // 2


def test_a_score_depends_on_no_other_query():
    regions, (queries, candidates) = images(), everything()
    whole = Matcher().score_unique_pairs(regions, queries, candidates).scores
    for query in range(12):
        alone = Matcher().score_unique_pairs(regions, queries[[query]], candidates[[query]]).scores
        assert alone[0].equal(whole[query])


def test_copies_of_an_image_score_the_same():
    regions = images()[[0, 5, 2, 5, 3, 5]]
    scores = Matcher().score_unique_pairs(regions, *everything(6)).scores
    assert scores[0, 0] == scores[0, 2] == scores[0, 4]  # of image 0 with 1, 3 and 5
    assert scores[2, 1] == scores[2, 2] == scores[2, 4]  # of image 2 with 1, 3 and 5


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_order_of_two_images_depends_on_their_contents(zero):
    dense = torch.tensor([[[1.0, zero]], [[0.0, 1.0]], [[1.0, 0.0]]])
    regions = Regions(dense, dense[:, 0])
    first, second = by_content(regions, torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]))
    assert first[0] == first[1]
    assert (first[0] == 1) == (first[2] == 1) == (first[3] == 1)
    assert by_content(regions, torch.tensor([2]), torch.tensor([0])) == (torch.tensor([0]), torch.tensor([2]))
    assert sorted([int(first[2]), int(second[2])]) == [1, 2]


def test_no_image_has_no_score_and_all_work_is_reported(monkeypatch):
    monkeypatch.setattr(matcher, "PAIRS_AT_ONCE", 7)
    told = []
    candidates = torch.tensor([[1, 2, NOTHING], [0, NOTHING, NOTHING]])
    scores = Matcher().score_unique_pairs(images(), torch.tensor([0, 1]), candidates, progress=told.append).scores
    assert (scores == -torch.inf).equal(candidates == NOTHING)
    assert sum(told) == pytest.approx(1)
    found = Matcher().score_unique_pairs(images(), torch.tensor([3]), candidates[:1, 2:], progress=told.append)
    assert found.scores.tolist() == [[-torch.inf]]
    assert found.unconverged == 0
    assert sum(told) == pytest.approx(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("at_once", [1, 4, 100])
@pytest.mark.parametrize("weight", [0, 1, float("inf")])
def test_scores_of_pairs_are_those_of_match(dtype, at_once, weight, monkeypatch):
    monkeypatch.setattr(matcher, "PAIRS_AT_ONCE", at_once)
    regions, queries = images(9).to(dtype), torch.tensor([3, 0, 8])
    candidates = torch.tensor([[1, 3, 0], [5, 3, 2], [8, 2, 1]])
    found = Matcher(structural_weight=weight).score_unique_pairs(regions, queries, candidates)
    left, right = by_content(regions, queries.repeat_interleave(3), candidates.flatten())
    expected = match(regions[left], regions[right], structural_weight=weight).score.view(3, 3)
    assert found.scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-5)


def test_pairs_that_stop_at_max_iterations_are_counted():
    assert Matcher(max_iterations=1).score_unique_pairs(images(), *everything()).unconverged > 0
    assert Matcher().score_unique_pairs(images(), *everything()).unconverged == 0
