"""Multi-similarity + DIML at the size of the authors' batches, in float32, against a loop over anchors in float64.

The recorded outputs of the released code, in `test_oracle_losses`, are of 12 images.

Legend: N = 112 images, two of each of 56 classes, D = 128 channels, R = 16 regions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diml.matching import Matcher, Regions
from diml.objectives import build_objective

ALPHA, BETA, BASE, EPSILON = 2.0, 40.0, 0.5, 0.1


def make_maps() -> Tensor:
    """Feature maps (112, 128, 4, 4) in float64: classes overlap, and all images have a common part."""
    generator = torch.Generator().manual_seed(0)
    shared, own, noise = (torch.randn(n, 128, 4, 4, generator=generator, dtype=torch.float64) for n in (1, 56, 112))
    return shared + 0.6 * own.repeat_interleave(2, 0) + noise


def similarities(regions: Regions) -> Tensor:
    """(N, N) by `Matcher.match`, to a small tolerance; a pair and its mirror image once."""
    i, j = torch.triu_indices(len(regions), len(regions), offset=1)
    found = Matcher(tolerance=1e-8).match(regions[i], regions[j])
    empty = torch.zeros(len(regions), len(regions), dtype=torch.float64)
    half = empty.index_put((i, j), (found.structural + found.pooled) / 2)
    return half + half.T


def naive(similarity: Tensor, labels: list[int]) -> tuple[Tensor, int]:
    """Mining and loss of Wang et al., CVPR 2019, averaged over anchors with a mined pair; and how many pairs."""
    known = similarity.detach()
    total, anchors, mined = torch.zeros((), dtype=torch.float64), 0, 0
    for i, label in enumerate(labels):
        same = [j for j, other in enumerate(labels) if other == label and j != i]
        rest = [j for j, other in enumerate(labels) if other != label]
        nearest_other, farthest_own = known[i, rest].max(), known[i, same].min()
        positive = [similarity[i, j] for j in same if known[i, j] - EPSILON < nearest_other]
        negative = [similarity[i, j] for j in rest if known[i, j] + EPSILON > farthest_own]
        if positive:
            total = total + torch.stack([(-ALPHA * (s - BASE)).exp() for s in positive]).sum().log1p() / ALPHA
        if negative:
            total = total + torch.stack([(BETA * (s - BASE)).exp() for s in negative]).sum().log1p() / BETA
        anchors += bool(positive or negative)
        mined += len(positive) + len(negative)
    return total / anchors, mined


def test_value_and_gradient_at_the_size_of_the_authors_batches():
    labels = torch.arange(56).repeat_interleave(2)
    maps = make_maps().float().requires_grad_()
    objective = build_objective("multisimilarity_diml", num_classes=56, embedding_dim=128)
    loss = objective(Regions.from_maps(maps), labels)
    loss.backward()
    again = maps.detach().double().requires_grad_()
    expected, mined = naive(similarities(Regions.from_maps(again)), labels.tolist())
    expected.backward()
    counts = objective.statistics
    assert counts["unconverged_pairs"] == 0
    assert mined > 2000
    # a pair at the very edge of what is mined may fall on either side, as plans agree to the solver's tolerance
    assert abs(counts["positive_pairs"] + counts["negative_pairs"] - mined) <= 0.002 * mined
    assert math.isclose(loss.item(), expected.item(), rel_tol=1e-3)
    assert (maps.grad - again.grad).norm() <= 1e-3 * again.grad.norm()
    assert again.grad.norm() > 1e-3
