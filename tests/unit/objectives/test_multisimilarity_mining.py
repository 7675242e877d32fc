"""Multi-similarity mining without sorting finds the pairs of PML's miner."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from pytorch_metric_learning import miners as library
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from torch.nn.functional import normalize

from diml.matching import Regions
from diml.objectives import StructuralSimilarity, pack_regions
from diml.objectives.miners import MultiSimilarityMiner


def _pairs(mined):
    """Two sets of (anchor, other)."""
    a, p, b, n = (part.tolist() for part in mined)
    positive, negative = list(zip(a, p, strict=True)), list(zip(b, n, strict=True))
    assert len({*positive}) == len(positive)
    assert len({*negative}) == len(negative)
    return {*positive}, {*negative}


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    epsilon=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 1000),
    levels=st.sampled_from([2, 1000]),  # few levels: similarities that are equal
)
def test_the_pairs_are_the_library_s(labels, epsilon, seed, levels):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(len(labels), 3, generator=generator).mul(levels).round() / levels
    y = torch.tensor(labels)
    ours, theirs = (kind(epsilon)(images, y) for kind in (MultiSimilarityMiner, library.MultiSimilarityMiner))
    assert _pairs(ours) == _pairs(theirs)
    assert [part.dtype for part in ours] == [part.dtype for part in theirs]


@pytest.mark.parametrize("distance", [CosineSimilarity(), LpDistance()])
def test_two_sides_and_distances_are_the_library_s(distance):
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(count, 4, generator=generator) for count in (7, 12))
    y, other = torch.arange(7) % 3, torch.arange(12) % 4
    for sides in ((query, y), (query, y, gallery, other)):
        ours, theirs = (
            kind(0.2, distance=distance)(*sides) for kind in (MultiSimilarityMiner, library.MultiSimilarityMiner)
        )
        assert _pairs(ours) == _pairs(theirs)
    assert sum(len(part) for part in ours) > 0
    none = MultiSimilarityMiner(distance=distance)(query[:0], y[:0])
    assert [len(part) for part in none] == [0, 0, 0, 0]


def test_the_loss_is_the_same_number():
    generator = torch.Generator().manual_seed(0)
    dense = normalize(torch.randn(12, 4, 8, generator=generator), dim=2)
    packed = pack_regions(Regions.normalized(dense, dense.mean(dim=1))).requires_grad_()
    y, distance = torch.arange(12) // 3, StructuralSimilarity(4)
    found = []
    for kind in (MultiSimilarityMiner, library.MultiSimilarityMiner):
        value = losses.MultiSimilarityLoss(2, 40, 0.5, distance=distance)(
            packed, y, kind(0.1, distance=distance)(packed, y)
        )
        found.append((value, *torch.autograd.grad(value, packed)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][1].norm() > 0
