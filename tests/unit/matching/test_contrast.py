"""The difference of two scores of one query as a sum over the query's regions."""

from __future__ import annotations

import json

import pytest
import torch

from diml.matching import Contrast, Ledger, Regions, match


def regions(images, count, seed, grid=None):
    dense = torch.randn(images, count, 8, generator=torch.Generator().manual_seed(seed))
    return Regions.normalized(dense, dense.mean(dim=1), grid)


@pytest.fixture
def found():
    """One query of 2 x 3 regions against three images."""
    return match(regions(1, 6, 0, (2, 3)), regions(3, 16, 1))


def test_the_difference_of_scores_is_the_sum_of_its_parts(found):
    for above in range(3):
        for below in range(3):
            contrast = found.contrast(found, above, below)
            first, second = found.ledger(above), found.ledger(below)
            assert contrast.score == pytest.approx(first.score - second.score, abs=1e-14)
            assert contrast.pooled + sum(contrast.regions.tolist()) == pytest.approx(contrast.score, abs=1e-14)
            assert contrast.structural == pytest.approx(first.structural - second.structural, abs=1e-14)
            assert contrast.score == pytest.approx(float(found.score[above] - found.score[below]), abs=1e-6)


def test_each_region_is_the_difference_of_two_naive_sums(found):
    contrast = found.contrast(found, 2, 0)
    for region in range(6):
        sums = [
            sum(float(found.plan[k, region, g]) * float(found.cosine[k, region, g]) for g in range(16)) for k in (2, 0)
        ]
        assert float(contrast.regions[region]) == pytest.approx(sums[0] - sums[1], abs=1e-12)
    assert contrast.regions.dtype == torch.float64
    assert contrast.grid_q == (2, 3)


def test_turned_around_all_signs_change_and_with_itself_nothing_is_left(found):
    there, back = found.contrast(found, 0, 1), found.contrast(found, 1, 0)
    assert torch.equal(there.regions, -back.regions)
    assert there.score == -back.score
    assert found.contrast(found, 1, 1).score == 0


def test_the_images_may_have_other_grids_than_each_other():
    query = regions(1, 6, 0, (2, 3))
    coarse, fine = match(query, regions(1, 4, 1)), match(query, regions(1, 25, 2))
    assert coarse.contrast(fine).score == pytest.approx(coarse.ledger().score - fine.ledger().score)


def test_another_query_is_refused(found):
    other = match(regions(1, 6, 0, (3, 2)), regions(1, 16, 1))
    with pytest.raises(ValueError, match=r"other: need a pair of the same query, got .*\(6, \(3, 2\)\) against \(6, "):
        found.contrast(other)
    with pytest.raises(IndexError):
        found.contrast(found, 0, 3)


def test_top_takes_large_differences_of_either_sign():
    contrast = Contrast(torch.tensor([0.1, -0.3, 0.0, 0.1, 0.2]).double(), pooled=0.5)
    assert contrast.top(3) == [1, 4, 0]
    assert contrast.top(9) == [1, 4, 0, 3, 2]
    assert contrast.top(0) == []
    with pytest.raises(ValueError, match="n: need 0 or more, got -1"):
        contrast.top(-1)


def test_a_contrast_is_plain_numbers():
    plan = torch.full((2, 2), 0.25)
    first = Ledger(plan, torch.tensor([[1.0, 0.5], [0.0, 0.0]]), 0.75, (1, 2), (1, 2))
    second = Ledger(plan, torch.tensor([[0.0, 0.5], [0.5, 0.5]]), 0.25, (1, 2), (1, 2))
    told = json.loads(json.dumps(first.contrast(second).to_dict()))
    assert told == {"score": 0.5, "pooled": 0.5, "structural": 0.0, "structural_weight": 1.0} | {
        "grid_q": [1, 2],
        "regions": [0.25, -0.25],
    }


def test_the_structural_weight_counts_in_both():
    plan, weight = torch.full((2, 2), 0.25), 4.0
    first = Ledger(plan, torch.ones(2, 2), 0.75, structural_weight=weight)
    second = Ledger(plan, torch.zeros(2, 2), 0.25, structural_weight=weight)
    assert first.contrast(second).score == pytest.approx(first.score - second.score)
    with pytest.raises(ValueError, match=r"same structural_weight, got 1\.0 against 4\.0"):
        first.contrast(Ledger(plan, torch.zeros(2, 2), 0.25))
