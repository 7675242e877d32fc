"""Scores of candidates: each pair once, whatever else is evaluated with it."""

import pytest
import torch

from diml.evaluation import rescoring
from diml.evaluation.rescoring import in_order, structural_scores
from diml.matching import Regions, match, native
from diml.matching.retrieval import NOTHING


def images(count=12, regions=4, dim=8):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(count, regions, dim, generator=generator)
    return Regions.normalized(dense, dense.mean(dim=1) + 0.3 * torch.randn(count, dim, generator=generator))


def everything(count=12):
    """All queries, each with all other images as candidates."""
    rows = torch.arange(count)
    return rows, torch.stack([torch.cat([rows[:row], rows[row + 1 :]]) for row in rows.tolist()])


def nothing(_share):
    pass


@pytest.mark.parametrize("stored", ["float32", "float64", "int8", "int16"])
@pytest.mark.parametrize("compiled", [True, False])
def test_every_candidate_gets_the_score_of_its_pair(stored, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "_KERNEL", None)
        monkeypatch.setattr(native, "_REASON", "turned off by a test")
    kind = getattr(torch, stored)
    regions = images().to(kind) if kind.is_floating_point else images().quantized(kind)
    queries, candidates = everything()
    found, unfinished = structural_scores(regions, queries, candidates, "both", {}, nothing)
    left, right = in_order(regions, queries.repeat_interleave(11), candidates.flatten())
    compared = regions[:]
    if stored == "int16":  # there, pooled vectors are rounded where they weigh regions
        compared = Regions(compared.dense, (compared.pooled * 32000).round() / 32000)
    expected = match(compared[left], compared[right])
    pooled = (regions.pooled[left] * regions.pooled[right]).sum(dim=1)
    torch.testing.assert_close(found.flatten(), expected.structural + pooled, rtol=0, atol=1e-5)
    assert unfinished == int((~expected.converged).sum())


def test_each_pair_is_solved_once(monkeypatch):
    seen = []

    def counting(regions, left, right, **settings):
        seen.extend(zip(left.tolist(), right.tolist(), strict=True))
        return real(regions, left, right, **settings)

    real = rescoring.score_pairs
    monkeypatch.setattr(rescoring, "score_pairs", counting)
    monkeypatch.setattr(rescoring, "PAIRS_AT_ONCE", 5)
    structural_scores(images(), *everything(), "both", {}, nothing)
    assert len(seen) == len({frozenset(pair) for pair in seen}) == 12 * 11 // 2


def test_a_score_depends_on_no_other_query():
    regions, (queries, candidates) = images(), everything()
    whole, _ = structural_scores(regions, queries, candidates, "both", {}, nothing)
    for query in range(12):
        alone, _ = structural_scores(regions, queries[[query]], candidates[[query]], "both", {}, nothing)
        assert alone[0].equal(whole[query])


def test_copies_of_an_image_score_the_same():
    regions = images()[[0, 5, 2, 5, 3, 5]]
    scores, _ = structural_scores(regions, *everything(6), "both", {}, nothing)
    assert scores[0, 0] == scores[0, 2] == scores[0, 4]  # of image 0 with 1, 3 and 5
    assert scores[2, 1] == scores[2, 2] == scores[2, 4]  # of image 2 with 1, 3 and 5


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_order_of_two_images_depends_on_their_contents(zero):
    dense = torch.tensor([[[1.0, zero]], [[0.0, 1.0]], [[1.0, 0.0]]])
    regions = Regions(dense, dense[:, 0])
    first, second = in_order(regions, torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 1]))
    assert first[0] == first[1]
    assert (first[0] == 1) == (first[2] == 1) == (first[3] == 1)
    assert in_order(regions, torch.tensor([2]), torch.tensor([0])) == (torch.tensor([0]), torch.tensor([2]))
    assert sorted([int(first[2]), int(second[2])]) == [1, 2]


def test_given_weights_keep_query_and_gallery_apart():
    regions, (queries, candidates) = images(), everything()
    weights = (torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[0.0, 0, 0, 1]]))
    found, _ = structural_scores(regions, queries, candidates, "structural", {"marginals": weights}, nothing)
    expected = (regions.dense[queries, 0].unsqueeze(1) * regions.dense[candidates, 3]).sum(dim=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_no_image_has_no_score_and_all_work_is_reported(monkeypatch):
    monkeypatch.setattr(rescoring, "PAIRS_AT_ONCE", 7)
    told = []
    candidates = torch.tensor([[1, 2, NOTHING], [0, NOTHING, NOTHING]])
    scores, _ = structural_scores(images(), torch.tensor([0, 1]), candidates, "both", {}, told.append)
    assert (scores == -torch.inf).equal(candidates == NOTHING)
    assert sum(told) == pytest.approx(1)
    scores, unfinished = structural_scores(images(), torch.tensor([3]), candidates[:1, 2:], "both", {}, told.append)
    assert scores.tolist() == [[-torch.inf]]
    assert unfinished == 0
    assert sum(told) == pytest.approx(2)
