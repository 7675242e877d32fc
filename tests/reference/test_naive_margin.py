"""Margin loss and margin + DIML against loops over triplets and cells, with a beta of its own for each class.

With equal betas, what the released margin + DIML does, every beta against every triplet, shows in the divisor only.

Legend: N = 15 images of 5 classes, D = 16 channels, R = 4 regions.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diml.matching import Matcher, Regions
from diml.objectives import build_objective

BETAS = (0.5, 0.8, 1.1, 1.4, 1.7)
MARGIN, NU = 0.3, 0.02
LABELS = torch.arange(5).repeat_interleave(3)
#: Enough entropy, and a tolerance, with which the plans of both sides are the same.
TIGHT = Matcher(epsilon=0.2, tolerance=1e-10)


def make_maps() -> torch.Tensor:
    """Feature maps (15, 16, 2, 2) in float64 of classes that overlap."""
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(5, 16, 2, 2, generator=generator, dtype=torch.float64)
    return centers.repeat_interleave(3, 0) + torch.randn(15, 16, 2, 2, generator=generator, dtype=torch.float64)


def build(name):
    """The objective with one beta a class, in float64, drawing the same triplets each time."""
    generator = torch.Generator().manual_seed(1)
    options = {"miner": "random", "generator": generator, "margin": MARGIN, "nu": NU, "matcher": TIGHT}
    objective = build_objective(name, num_classes=5, embedding_dim=16, **options).double()
    objective.loss.beta.data = torch.tensor(BETAS, dtype=torch.float64)
    return objective


def plain_distance(regions, i, j):
    return (regions.pooled[i] - regions.pooled[j]).square().sum().sqrt()


def structural_distance(regions, i, j):
    """By the plan of `match`, which is a constant, cell by cell."""
    plan = TIGHT.match(regions[i].to(torch.float64), regions[j]).plan[0].detach()
    total = ((regions.pooled[i] - regions.pooled[j]).square().sum() + 1e-6).sqrt()
    for r in range(regions.num_regions):
        for s in range(regions.num_regions):
            total = total + plan[r, s] * ((regions.dense[i, r] - regions.dense[j, s]).square().sum() + 1e-6).sqrt()
    return total / 2


def naive(distance, regions, beta, triplets):
    """The loss: hinges of each triplet and nu times the beta of its anchor's class, over the number of violated hinges.

    Second: how many are violated.
    """
    hinges, penalty = [], []
    for a, p, n in zip(*triplets, strict=True):
        own = beta[LABELS[a]]
        hinges += [F.relu(distance(regions, a, p) - own + MARGIN), F.relu(own - distance(regions, a, n) + MARGIN)]
        penalty.append(own)
    active = sum(int(hinge > 0) for hinge in hinges)
    return (torch.stack(hinges).sum() + NU * torch.stack(penalty).sum()) / active, active


@pytest.mark.parametrize(("name", "distance"), [("margin", plain_distance), ("margin_diml", structural_distance)])
def test_betas_that_differ_by_class_meet_their_own_anchors(name, distance):
    """Value, gradient of the feature maps and gradient of beta."""
    maps = make_maps().requires_grad_()
    objective = build(name)
    loss = objective(Regions.from_maps(maps), LABELS)
    loss.backward()
    with torch.no_grad():
        chosen = build(name).miner(Regions.from_maps(maps).pooled, LABELS)
    again = maps.detach().clone().requires_grad_()
    beta = torch.tensor(BETAS, dtype=torch.float64, requires_grad=True)
    expected, active = naive(distance, Regions.from_maps(again), beta, chosen)
    expected.backward()
    assert 10 < active < 2 * len(chosen[0])  # some are violated, some are not
    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(maps.grad, again.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(objective.loss.beta.grad, beta.grad, rtol=1e-7, atol=1e-10)
    assert len(set(beta.grad.tolist())) == 5
    # the test can tell: with the betas of other classes the value is another
    wrong = beta.detach().roll(1).requires_grad_()
    other, _ = naive(distance, Regions.from_maps(again), wrong, chosen)
    assert abs(other.item() - expected.item()) > 1e-4 * expected.item()  # 1000 times the tolerance
