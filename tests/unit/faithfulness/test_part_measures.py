"""Parts whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diml.faithfulness.part_measures import (
    PART_METHODS,
    TOP,
    argmax_parts,
    divided_parts,
    held_shares,
    part_accuracies,
    part_accuracy,
    part_stability,
    row_shares,
)
from diml.faithfulness.warps import Warp, true_cells
from diml.matching import Matcher, Regions
from diml.matching.parts import parts_of

MATCHER = Matcher(epsilon=0, weights="uniform")
FLIP = Warp(np.eye(3), np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
STAY = Warp(np.eye(3), np.eye(3))


def regions(flipped=False, images=1, shares=True, noise=0.01):
    """A 4 x 4 grid with a distinct feature per region, alike within a quadrant; flipped from left to right or not."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.eye(4, 20, dtype=torch.float64).T.reshape(1, 20, 2, 2)
    maps = objects.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).repeat(images, 1, 1, 1)
    maps = maps + noise * torch.rand(maps.shape, generator=generator, dtype=torch.float64)
    maps[:, 4:] += torch.eye(16, dtype=torch.float64).reshape(16, 4, 4)  # each region is its own
    return Regions.from_maps(maps.flip(3) if flipped else maps, shares=shares)


def pair(flipped=False, **changes):
    return MATCHER.match(regions(**changes), regions(flipped, **changes))


def truths(warp, grid=(4, 4)):
    return true_cells(warp, grid, grid), true_cells(Warp(warp.gallery, warp.query), grid, grid)


@pytest.mark.parametrize(("warp", "flipped"), [(STAY, False), (FLIP, True)])
def test_parts_of_a_perfect_plan_land_in_their_true_image(warp, flipped):
    found = part_accuracies(pair(flipped), [warp])
    assert set(found) == set(PART_METHODS)
    for method in ("parts", "k-means", "argmax"):
        assert found[method].tolist() == pytest.approx(np.ones((1, 3)))


def test_a_division_does_not_follow_a_flip():
    found = part_accuracies(pair(True), [FLIP])
    landing, purity, _ = found["division"][0].tolist()
    assert landing == purity == 0  # the plan leaves the rectangle, and nothing stays inside
    assert part_accuracies(pair(), [STAY])["division"][0].tolist() == pytest.approx([1, 1, 1])


def test_accuracy_is_the_share_of_mass_by_its_definition():
    match = pair()
    ledger = match.ledger()
    generator = torch.Generator().manual_seed(1)
    parts = parts_of(ledger, *(torch.randint(-1, 3, (16,), generator=generator) for _ in range(2)))
    plan = torch.rand(16, 16, generator=generator)
    warp = Warp(np.eye(3), np.array([[0.75, 0.0, 0.2], [0.0, 0.75, 0.1], [0.0, 0.0, 1.0]]))
    truth, back = truths(warp)
    landed = moved = total = 0.0
    for i in range(16):
        for j in range(16):
            if not truth.inside[i]:
                continue
            total += float(plan[i, j])
            if parts.part_q[i] >= 0 and parts.part_q[i] == parts.part_g[j]:
                moved += float(plan[i, j])
                if back.inside[j] and parts.part_q[back.cell[j]] == parts.part_q[i]:
                    landed += float(plan[i, j])
    found = part_accuracy(parts, plan, truth, back)
    assert found.landing == pytest.approx(landed / total)
    assert found.purity == pytest.approx(landed / moved)


def test_regions_without_counterpart_or_mass_give_no_accuracy():
    match = pair()
    truth, back = truths(STAY)
    nowhere = replace(truth, inside=np.zeros(16, dtype=bool))
    parts = match.ledger().parts()
    assert part_accuracy(parts, match.plan[0], nowhere, back) is None
    assert part_accuracy(parts, torch.zeros(16, 16), truth, back) is None


def test_the_same_pair_is_stable():
    match = pair(images=2)
    for n in (4, None):
        found = part_stability(match, match, n)
        assert set(found) == (set(PART_METHODS) if n else {"parts"})
        assert all(values.tolist() == [1.0, 1.0] for values in found.values())


def test_other_parts_are_not_stable():
    before, after = pair(), MATCHER.match(regions(), regions(True))
    assert part_stability(before, after)["parts"][0] < 1
    assert part_stability(before, after)["division"][0] == 1


def test_shares_that_parts_hold():
    found = held_shares(pair())
    assert found["parts"][0, 0] == pytest.approx(1)
    assert 0 < found["parts"][0, 1] < 1
    assert found["division"][0, 0] == pytest.approx(1)
    plain = held_shares(pair(shares=False), None)
    assert set(plain) == {"parts"}
    assert np.isnan(plain["parts"][0, 1])


def test_largest_rows_of_cells_and_parts():
    match = pair()
    found = row_shares(match, 4)
    ledger = match.ledger()
    for top in TOP:
        cells = sorted(ledger.contributions.flatten().tolist(), reverse=True)[:top]
        assert found["cells", f"structural top {top}"].tolist() == pytest.approx([sum(cells) / ledger.structural])
        parts = [row.value for row in ledger.parts(4).rows][:top]
        assert found["parts", f"whole top {top}"].tolist() == pytest.approx([sum(parts) / ledger.score])
    assert found["parts", "structural top 5"].tolist() == pytest.approx([1])
    assert set(row_shares(pair(shares=False), 4)) == {key for key in found if key[1].startswith("structural")}


@pytest.mark.parametrize(("n", "sizes"), [(4, [4] * 4), (2, [8, 8]), (6, [2, 2, 2, 2, 4, 4]), (1, [16])])
def test_a_division_covers_the_image(n, sizes):
    parts = divided_parts(pair().ledger(), n)
    assert sorted(len(row.regions_q) for row in parts.rows) == sizes
    assert all(row.connected_q and row.connected_g and row.regions_q == row.regions_g for row in parts.rows)


def test_argmax_keeps_the_parts_of_the_query():
    ledger = pair(True).ledger()
    own = ledger.parts(4)
    found = argmax_parts(ledger, own.part_q)
    assert {row.regions_q for row in found.rows} == {row.regions_q for row in own.rows}


def test_regions_are_needed():
    match = pair()
    with pytest.raises(ValueError, match="match: need regions on known grids, got none"):
        part_accuracies(replace(match, grid_q=None), [STAY])
    with pytest.raises(ValueError, match=r"match: need the regions that were compared"):
        held_shares(replace(match, dense_q=None))
