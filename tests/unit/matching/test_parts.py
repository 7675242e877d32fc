"""Parts: few rows that sum to the score, of groups of regions that match."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diml.matching import Ledger, Matcher, Regions
from diml.matching.parts import CARRIED, is_connected, parts_of

EXACT = Matcher(epsilon=0, weights="uniform")


def smooth_maps(rows, columns, dim=12, seed=0, smoothness=0.5):
    """(1, D, H, W) float64 maps whose neighbours are alike, as those of a network are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, dim, 3, 3, generator=generator, dtype=torch.float64)
    fine = torch.randn(1, dim, rows, columns, generator=generator, dtype=torch.float64)
    wide = torch.nn.functional.interpolate(coarse, size=(rows, columns), mode="bilinear", align_corners=True)
    return wide + smoothness * fine + 0.3


def ledger_of(query=(5, 6), gallery=(4, 5), seed=0, shares=True, **settings):
    sides = [
        Regions.from_maps(smooth_maps(*grid, seed=seed + i), shares=shares) for i, grid in enumerate((query, gallery))
    ]
    return replace(EXACT, **settings).match(*sides).ledger()


def exchanged(ledger):
    """The ledger of the same pair with its images exchanged."""

    def turned(values):
        return None if values is None else values.T

    return replace(
        ledger,
        plan=ledger.plan.T,
        cosine=ledger.cosine.T,
        grid_q=ledger.grid_g,
        grid_g=ledger.grid_q,
        pooled_parts=turned(ledger.pooled_parts),
        within_q=ledger.within_g,
        within_g=ledger.within_q,
        unmatched_q=ledger.unmatched_g,
        unmatched_g=ledger.unmatched_q,
    )


def quadrants(order=(0, 1, 2, 3)):
    """Regions of a 4 x 4 grid, whose quadrants hold one of four objects each."""
    objects = torch.eye(4, 6, dtype=torch.float64)[list(order)] + 0.05
    maps = objects.T.reshape(1, 6, 2, 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return Regions.from_maps(maps + 1e-3 * torch.rand(maps.shape, dtype=torch.float64))


def sums_to_score(parts, atol=1e-9):
    total = math.fsum([row.value for row in parts.rows]) + parts.between + (parts.pooled or 0.0)
    assert total == pytest.approx(parts.score, abs=atol)


# ----------------------------------------------------------------------------------------------------- what it sums to


@given(
    seed=st.integers(0, 1000),
    sides=st.tuples(*[st.tuples(st.integers(1, 5), st.integers(1, 5))] * 2),
    n=st.none() | st.integers(1, 8),
    shares=st.booleans(),
    weight=st.sampled_from([0.0, 0.5, 1.0, 4.0, math.inf]),
    epsilon=st.sampled_from([0.0, 0.05]),
)
def test_rows_and_what_is_between_them_sum_to_the_score(seed, sides, n, shares, weight, epsilon):
    ledger = ledger_of(*sides, seed=seed, shares=shares, structural_weight=weight, epsilon=epsilon)
    parts = ledger.parts(n)
    sums_to_score(parts)
    assert parts.score == ledger.score
    assert parts.pooled == (None if ledger.has_whole else ledger.pooled)
    values = ledger.whole if ledger.has_whole else weight * ledger.contributions
    inside = (parts.part_q[:, None] == parts.part_g) & (parts.part_q[:, None] >= 0)
    assert parts.between == pytest.approx(float(values[~inside].sum()), abs=1e-9)
    assert [row.value for row in parts.rows] == sorted((row.value for row in parts.rows), reverse=True)
    for number, row in enumerate(parts.rows):
        assert row.regions_q == tuple((parts.part_q == number).nonzero().squeeze(1).tolist()) != ()
        assert row.regions_g == tuple((parts.part_g == number).nonzero().squeeze(1).tolist()) != ()
        pairs = [(i, j) for i in row.regions_q for j in row.regions_g]
        mass = math.fsum(float(ledger.plan[pair]) for pair in pairs)
        structural = math.fsum(float(ledger.plan[pair] * ledger.cosine[pair]) for pair in pairs)
        assert row.value == pytest.approx(math.fsum(float(values[pair]) for pair in pairs), abs=1e-12)
        assert row.mass == pytest.approx(mass, abs=1e-12)
        assert row.structural == pytest.approx(structural, abs=1e-12)
        assert row.cosine * row.mass == pytest.approx(structural, abs=1e-12)
        assert row.connected_q == is_connected(row.regions_q, ledger.grid_q)
    assert len(parts) <= (n or 6)


def test_the_sum_holds_for_the_shares_of_float32_vectors():
    sides = [Regions.from_maps(smooth_maps(7, 7, seed=seed).float(), shares=True) for seed in (0, 1)]
    parts = EXACT.match(*sides).ledger().parts()
    assert parts.pooled is None
    sums_to_score(parts)


def test_shares_are_fractions_of_the_score():
    parts = ledger_of().parts()
    for row in parts.rows:
        assert row.share == pytest.approx(row.value / parts.score)
        assert row.structural_share == pytest.approx(row.structural / parts.structural)
    assert parts.share == pytest.approx(1 - parts.between / parts.score)
    assert parts.structural_share > parts.share  # the pooled cosine compares regions of different parts, too


def test_shares_of_a_score_that_is_not_positive_are_zero():
    ledger = Ledger(torch.eye(2) / 2, -torch.ones(2, 2), pooled=-1.0)
    parts = ledger.parts(2)
    assert [row.share for row in parts.rows] == [0.0] * len(parts)
    assert parts.structural_share == 0
    sums_to_score(parts)


# ------------------------------------------------------------------------------------------------------ what is grouped


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 3, 2), (3, 1, 2, 0)])
def test_objects_are_found_wherever_they_are(order):
    ledger = EXACT.match(quadrants(), quadrants(order)).ledger()
    parts = ledger.parts(4)
    assert parts.structural_share == pytest.approx(1)
    assert all(row.connected_q and row.connected_g for row in parts.rows)
    corner = torch.tensor([0, 1, 2, 3]).reshape(2, 2).repeat_interleave(2, dim=0).repeat_interleave(2, dim=1).flatten()
    for row in parts.rows:
        (of_q,), (of_g,) = ({int(corner[i]) for i in regions} for regions in (row.regions_q, row.regions_g))
        assert order[of_g] == of_q
        assert len(row.regions_q) == len(row.regions_g) == 4


@pytest.mark.parametrize("n", [None, 3, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_parts_hold_nine_tenths_of_the_structural_score(n, seed):
    parts = ledger_of((7, 7), (7, 7), seed=10 * seed).parts(n)
    assert parts.structural_share >= CARRIED
    assert len(parts) == n if n else 3 <= len(parts) <= 6


def test_one_part_holds_everything():
    parts = ledger_of().parts(1)
    assert len(parts) == 1
    assert parts.structural_share == pytest.approx(1)
    assert parts.rows[0].share == pytest.approx(1)
    assert parts.between == pytest.approx(0, abs=1e-9)


@given(seed=st.integers(0, 1000), sides=st.tuples(*[st.tuples(st.integers(1, 5), st.integers(2, 5))] * 2))
def test_exchanging_the_images_exchanges_the_sides(seed, sides):
    ledger = ledger_of(*sides, seed=seed)
    parts, turned = ledger.parts(), exchanged(ledger).parts()
    assert torch.equal(parts.part_q, turned.part_g)
    assert torch.equal(parts.part_g, turned.part_q)
    assert [row.value for row in parts.rows] == pytest.approx([row.value for row in turned.rows])


def test_the_order_of_regions_without_a_grid_does_not_matter():
    ledger = replace(ledger_of(), grid_q=None, grid_g=None)
    orders = [torch.randperm(side, generator=torch.Generator().manual_seed(side)) for side in ledger.plan.shape]
    of_q, of_g = orders
    shuffled = replace(
        ledger,
        plan=ledger.plan[of_q][:, of_g],
        cosine=ledger.cosine[of_q][:, of_g],
        pooled_parts=ledger.pooled_parts[of_q][:, of_g],
        within_q=ledger.within_q[of_q][:, of_q],
        within_g=ledger.within_g[of_g][:, of_g],
    )
    parts, other = ledger.parts(4), shuffled.parts(4)
    assert torch.equal(parts.part_q[of_q], other.part_q)
    assert torch.equal(parts.part_g[of_g], other.part_g)
    assert all(row.connected_q and row.connected_g for row in parts.rows)


def test_every_call_gives_the_same_parts():
    first, second = (ledger_of((7, 7), (7, 7)).parts() for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_an_entropic_plan_is_grouped_by_the_exact_plan_of_its_masses():
    exact, entropic = (ledger_of(epsilon=epsilon).parts(4) for epsilon in (0.0, 0.05))
    assert torch.equal(exact.part_q, entropic.part_q)
    assert torch.equal(exact.part_g, entropic.part_g)
    assert entropic.structural_share < exact.structural_share
    sums_to_score(entropic)


def test_weights_of_the_structural_score_change_values_not_groups():
    parts = [ledger_of(structural_weight=weight).parts(4) for weight in (1.0, 4.0, math.inf)]
    groups = [{(row.regions_q, row.regions_g) for row in found.rows} for found in parts]
    assert groups[0] == groups[1] == groups[2]
    assert [row.value for row in parts[2].rows] == [row.structural for row in parts[2].rows]


# -------------------------------------------------------------------------------------------------- degenerate input


def test_a_single_pair_of_regions_is_one_part():
    parts = Ledger(torch.ones(1, 1), torch.full((1, 1), 0.5), pooled=0.25, grid_q=(1, 1), grid_g=(1, 1)).parts()
    assert len(parts) == 1
    assert (parts.rows[0].value, parts.rows[0].cosine, parts.pooled) == (0.5, 0.5, 0.25)


def test_one_region_against_many_is_one_part():
    parts = ledger_of((1, 1), (4, 4)).parts(5)
    assert len(parts) == 1
    assert parts.rows[0].regions_g == tuple(range(16))


@pytest.mark.parametrize("n", [None, 4, 30])
def test_equal_regions_are_grouped_by_their_places(n):
    constant = Regions.from_maps(torch.ones(1, 3, 4, 4, dtype=torch.float64), shares=True)
    parts = EXACT.match(constant, constant).ledger().parts(n)
    sums_to_score(parts)
    assert parts.structural_share >= CARRIED
    assert all(row.connected_q for row in parts.rows)


def test_regions_without_mass_are_in_no_part():
    regions = Regions.from_maps(smooth_maps(3, 3))
    weight = torch.tensor([[0.0, 0, 0, 1, 1, 1, 1, 1, 1]], dtype=torch.float64) / 6
    uniform = torch.full((1, 9), 1 / 9, dtype=torch.float64)
    parts = EXACT.match(regions, regions, weights=(weight, uniform)).ledger().parts(3)
    assert parts.part_q.tolist()[:3] == [-1, -1, -1]
    assert parts.part_q[3:].min() >= 0
    assert parts.part_g.min() >= 0
    sums_to_score(parts)


def test_regions_whose_mass_is_mostly_unmatched_are_in_no_part():
    ledger = ledger_of((3, 3), (3, 3))
    kept = torch.ones(9, dtype=torch.float64)
    kept[0], kept[1] = 0.4, 0.6
    unmatched = ledger.plan.sum(dim=1) * (1 - kept)
    parts = replace(ledger, plan=ledger.plan * kept[:, None], unmatched_q=unmatched, unmatched_g=torch.zeros(9)).parts(
        3
    )
    assert parts.part_q[0] == -1
    assert parts.part_q[1:].min() >= 0
    sums_to_score(parts)


def test_nothing_matched_leaves_no_parts():
    ledger = Ledger(torch.zeros(2, 3), torch.ones(2, 3), pooled=0.5, unmatched_q=torch.ones(2) / 2)
    parts = ledger.parts()
    assert len(parts) == 0
    assert parts.part_q.tolist() == [-1, -1]
    assert (parts.between, parts.pooled, parts.share) == (0, 0.5, 0)
    assert "between" in str(parts)


def test_regions_that_send_only_to_others_that_are_unmatched():
    """All mass of the first region goes to one that is mostly unmatched and in no part."""
    plan = torch.tensor([[0.3, 0.0], [0.0, 0.0]])
    ledger = Ledger(plan, torch.ones(2, 2), pooled=0.0, unmatched_g=torch.tensor([0.6, 0.0]))
    parts = ledger.parts()
    assert parts.part_g.tolist() == [-1, -1]
    assert len(parts) == 0
    sums_to_score(parts)


def test_opposite_regions_are_grouped_all_the_same():
    ledger = ledger_of()
    parts = replace(ledger, cosine=-ledger.cosine.abs(), within_q=-ledger.within_q, within_g=None).parts()
    sums_to_score(parts)
    assert parts.part_q.min() >= 0


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n: need at least 1 part, got 0"),
        (-2, ValueError, "n: need at least 1 part, got -2"),
        (2.0, TypeError, r"n: need an integer or None, got 2.0 \(float\)"),
        (True, TypeError, "n: need an integer or None, got True"),
    ],
)
def test_a_wrong_number_of_parts_is_refused(n, error, message):
    with pytest.raises(error, match=message):
        ledger_of().parts(n)


# ---------------------------------------------------------------------------------------------------- how it is written


def test_given_groups_are_read_in_the_order_of_their_values():
    ledger = Ledger(
        torch.eye(3) / 3, torch.diag(torch.tensor([0.1, 0.9, 0.5])), pooled=0.0, grid_q=(1, 3), grid_g=(3, 1)
    )
    parts = parts_of(ledger, torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0]))
    assert parts.part_q.tolist() == [1, 0, 1]
    assert [row.regions_q for row in parts.rows] == [(1,), (0, 2)]
    assert [row.connected_q for row in parts.rows] == [True, False]
    assert [row.connected_g for row in parts.rows] == [True, False]


def test_json_holds_all_rows():
    parts = ledger_of().parts(3)
    written = json.loads(parts.to_json())
    assert written == json.loads(json.dumps(parts.to_dict()))
    assert written["score"] == parts.score
    assert written["part_q"] == parts.part_q.tolist()
    assert sum(row["value"] for row in written["parts"]) + written["between"] == pytest.approx(written["score"])
    assert set(written["parts"][0]) == {
        *("regions_q", "regions_g", "value", "share", "structural", "structural_share"),
        *("mass", "cosine", "connected_q", "connected_g"),
    }


def test_the_table_ends_with_the_score():
    parts = ledger_of(shares=False).parts(2)
    lines = str(parts).splitlines()
    assert lines[0].split() == ["part", "query", "gallery", "mass", "cosine", "value", "share"]
    assert [line.split("  ")[0] for line in lines[1:]] == ["1", "2", "between parts", "pooled", "score"]
    assert lines[-1].split()[1:] == [f"{parts.score:.4f}", "100%"]
    assert len({len(line) for line in lines}) == 1
    assert parts._repr_html_().count("<tr>") == len(lines)


def test_repr_is_short():
    parts = ledger_of().parts(3)
    assert repr(parts) == f"Parts(3 parts hold {parts.structural_share:.0%} of the structural score)"


def test_pieces_of_a_part_are_told():
    ledger = Ledger(torch.eye(3) / 3, torch.eye(3), pooled=0.0, grid_q=(1, 3))
    assert "2 regions, in pieces" in str(parts_of(ledger, torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0])))
