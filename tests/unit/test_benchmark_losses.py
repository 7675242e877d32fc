"""The loss that benchmarks/loss.py times alone is the loss that it times with mining and normalisation."""

from __future__ import annotations

import argparse

import pytest
import torch

import loss
import plain
import regimes
from diml.objectives.miners import DistanceWeightedMiner

OPTIONS = argparse.Namespace(per_class=2, regions=4, dim=8, seed=0, tolerance=4e-6)


@pytest.mark.parametrize("objective", loss.OBJECTIVES)
@pytest.mark.parametrize("side", loss.SIDES)
def test_the_loss_alone_is_the_same_number(objective, side):
    whole = loss.step(side, objective, "easy", 8, OPTIONS)
    alone = loss.step(side, objective, "easy", 8, OPTIONS, alone=True)
    for _ in range(2):  # runs do not affect each other
        value, gradient = alone()
        assert value == pytest.approx(whole()[0], rel=1e-6)
        assert value > 0
    assert gradient.shape == (8, 4, 8)
    before = gradient.clone()
    assert torch.equal(before, alone()[1])


@pytest.mark.parametrize("objective", loss.OBJECTIVES)
def test_the_reference_is_close(objective):
    value, gradient = loss.step("diml", objective, "hard", 8, OPTIONS)()
    exact, exact_gradient = loss.step("diml", objective, "hard", 8, OPTIONS, exact=True)()
    assert exact_gradient.dtype == torch.float64
    assert value == pytest.approx(exact, rel=1e-4)
    assert (gradient - exact_gradient).norm() < 1e-3 * exact_gradient.norm()


@pytest.mark.parametrize("kind", ["easy", "hard"])
@pytest.mark.parametrize("upper_cutoff", [1.4, 0.6])
def test_the_plain_side_mines_the_triplets_of_our_miner(kind, upper_cutoff):
    made = regimes.generate(kind, images=40, classes=13, regions=2, dim=16, seed=1)
    labels = torch.where(made.labels == 3, torch.arange(40) + 100, made.labels)  # classes of one image have no anchor
    ours = DistanceWeightedMiner(upper_cutoff=upper_cutoff, generator=torch.Generator().manual_seed(5))
    expected = ours(made.regions.pooled, labels)
    generator = torch.Generator().manual_seed(5)
    found = plain.distance_weighted(made.regions.pooled, labels, ours.cutoff, upper_cutoff, generator)
    assert len(found[0]) == 40 - int((made.labels == 3).sum())
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
