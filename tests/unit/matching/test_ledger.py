"""The ledger of a pair: what it adds up to, how it is ordered and written."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest
import torch

from diml.matching import Ledger, Regions, match
from diml.matching.ledger import Flow

PLAN = torch.tensor([[0.25, 0.0, 0.25], [0.0, 0.5, 0.0]])
COSINE = torch.tensor([[0.5, 1.0, 0.5], [0.25, -0.5, 0.0]])


@pytest.fixture
def ledger():
    return Ledger(PLAN, COSINE, pooled=0.25, grid_q=(2, 1), grid_g=(1, 3))


@pytest.fixture
def found():
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(3, regions, 8, generator=generator) for regions in (16, 9)]
    return match(*(Regions.normalized(side, side.mean(dim=1)) for side in sides))


def test_entries_add_up(ledger):
    assert ledger.contributions.tolist() == [[0.125, 0, 0.125], [0, -0.25, 0]]
    assert ledger.total_q.tolist() == [0.25, -0.25]
    assert ledger.total_g.tolist() == [0.125, -0.25, 0.125]
    assert ledger.structural == 0
    assert ledger.score == 0.25


def test_regions_have_the_names_that_pages_show(ledger):
    assert [ledger.name_q(region) for region in (0, 1)] == ["A1", "A2"]
    assert [ledger.name_g(region) for region in (0, 1, 2)] == ["A1", "B1", "C1"]
    assert Ledger(PLAN, COSINE, pooled=0.25).name_q(1) == "#1"
    assert "<tr><td>A1</td><td>C1</td>" in ledger._repr_html_()


@pytest.mark.parametrize("index", [0, 1, 2, -1])
def test_a_match_gives_the_ledger_of_each_pair(found, index):
    ledger = found.ledger(index)
    assert torch.equal(ledger.plan, found.plan[index])
    assert torch.equal(ledger.cosine, found.cosine[index])
    assert ledger.structural == pytest.approx(found.structural[index].item(), abs=1e-6)
    assert ledger.score == pytest.approx(found.score[index].item(), abs=1e-6)
    assert (ledger.grid_q, ledger.grid_g) == ((4, 4), (3, 3))


def test_the_first_pair_is_the_default(found):
    assert torch.equal(found.ledger().plan, found.plan[0])


@pytest.mark.parametrize("index", [3, -4])
def test_a_missing_pair_is_refused(found, index):
    with pytest.raises(IndexError):
        found.ledger(index)


def test_a_ledger_of_a_training_pair_is_free_of_gradient():
    regions = Regions.from_maps(torch.randn(2, 6, 2, 2).requires_grad_())
    ledger = match(regions[0], regions[1]).ledger()
    assert not ledger.cosine.requires_grad
    assert json.loads(ledger.to_json())["score"] == ledger.score


def test_top_is_sorted_with_ties_in_row_major_order(ledger):
    assert ledger.top(3) == [
        Flow(region_q=0, region_g=0, mass=0.25, cosine=0.5, contribution=0.125),
        Flow(region_q=0, region_g=2, mass=0.25, cosine=0.5, contribution=0.125),
        Flow(region_q=0, region_g=1, mass=0.0, cosine=1.0, contribution=0.0),
    ]


def test_top_finds_the_largest_contributions(found):
    ledger = found.ledger(1)
    flows = ledger.top(10)
    largest = sorted(ledger.contributions.flatten().tolist(), reverse=True)[:10]
    assert [flow.contribution for flow in flows] == largest
    for flow in flows:
        assert flow.contribution == ledger.contributions[flow.region_q, flow.region_g]
        assert flow.mass == ledger.plan[flow.region_q, flow.region_g]
        assert flow.cosine == ledger.cosine[flow.region_q, flow.region_g]


@pytest.mark.parametrize(("n", "length"), [(0, 0), (1, 1), (6, 6), (7, 6), (10**9, 6)])
def test_top_gives_all_there_are_at_most(ledger, n, length):
    flows = ledger.top(n)
    assert len(flows) == length
    assert len({(flow.region_q, flow.region_g) for flow in flows}) == length


def test_top_refuses_a_negative_number(ledger):
    with pytest.raises(ValueError, match="n: need 0 or more, got -1"):
        ledger.top(-1)


def test_json_holds_the_whole_ledger(ledger):
    written = json.loads(ledger.to_json(top=2))
    assert written["score"] == 0.25
    assert written["pooled"] == 0.25
    assert written["structural"] == 0
    assert written["grid_q"] == [2, 1]
    assert written["grid_g"] == [1, 3]
    assert written["total_q"] == [0.25, -0.25]
    assert written["total_g"] == [0.125, -0.25, 0.125]
    assert written["plan"] == PLAN.tolist()
    assert written["cosine"] == COSINE.tolist()
    assert written["top"] == [vars(flow) for flow in ledger.top(2)]


def test_json_of_regions_without_a_grid():
    written = json.loads(Ledger(PLAN, COSINE, pooled=0.0).to_json())
    assert written["grid_q"] is written["grid_g"] is None
    assert len(written["top"]) == 6


def test_entries_are_frozen(ledger):
    with pytest.raises(FrozenInstanceError):
        ledger.pooled = 1.0
    with pytest.raises(FrozenInstanceError):
        ledger.top(1)[0].mass = 1.0


def test_a_match_gives_similarities_within_either_image(found):
    ledger = found.ledger(2)
    for within, dense in ((ledger.within_q, found.dense_q[2]), (ledger.within_g, found.dense_g[2])):
        assert within.dtype == torch.float64
        torch.testing.assert_close(within, dense.double() @ dense.double().T)
        torch.testing.assert_close(within.diagonal(), torch.ones(len(dense), dtype=torch.float64), atol=1e-6, rtol=0)


def test_parts_sum_to_the_score(found):
    ledger = found.ledger(1)
    parts = ledger.parts(3)
    assert parts.pooled == ledger.pooled
    assert sum(row.value for row in parts.rows) + parts.between + parts.pooled == pytest.approx(ledger.score, abs=1e-9)
    assert [len(side) for side in (parts.part_q, parts.part_g)] == [16, 9]


def test_parts_of_a_training_pair_are_free_of_gradient():
    regions = Regions.from_maps(torch.randn(2, 6, 2, 2).requires_grad_())
    assert json.loads(match(regions[0], regions[1]).ledger().parts().to_json())["score"] is not None


def test_parts_need_no_similarities_within_the_images(ledger):
    assert ledger.within_q is None
    parts = ledger.parts(2)
    assert parts.to_dict()["score"] == ledger.score
