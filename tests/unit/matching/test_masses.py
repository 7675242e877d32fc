"""Masses that regions carry of their own, and matchers that use them: weights="rollout"."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.matching import Matcher, Regions, nearest
from diml.matching.regions import QuantizedRegions

MATCHERS = [
    Matcher(weights="rollout"),
    Matcher(weights="rollout", epsilon=0),
    Matcher(weights="rollout", share=0.6, structural_weight=4),
    Matcher(weights="rollout", matching="maxsim"),
    Matcher(weights="rollout", matching="maxsim_query"),
]


def made(images: int = 6, regions: int = 4, dim: int = 8, seed: int = 0, dtype=torch.float32) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(images, regions, dim, generator=generator)
    pooled = torch.randn(images, dim, generator=generator)
    masses = torch.rand(images, regions, generator=generator)
    return Regions.normalized(dense, pooled, masses=masses).to(dtype)


@pytest.mark.parametrize(
    "matcher", MATCHERS, ids=lambda matcher: f"{matcher.matching}-{matcher.epsilon}-{matcher.share}"
)
def test_the_masses_are_the_weights_wherever_images_are_compared(matcher):
    """`match` with the same weights given by hand is the oracle of score, rerank and score_unique_pairs."""
    images = made()
    rows, columns = torch.arange(6).repeat_interleave(6), torch.arange(6).repeat(6)
    pairs = images[rows], images[columns]
    plain = Matcher(**{**vars(matcher), "weights": "uniform"})
    by_hand = plain.match(*pairs, weights=(images.masses[rows], images.masses[columns]))
    found = matcher.match(*pairs)
    torch.testing.assert_close(found.plan, by_hand.plan)
    torch.testing.assert_close(found.weight_q, images.masses[rows])
    expected = by_hand.score.reshape(6, 6)
    every = torch.arange(6).expand(6, -1)
    torch.testing.assert_close(matcher.score(images, images, every), expected, atol=1e-5, rtol=1e-5)
    ranked = matcher.rerank(images, images, every)
    torch.testing.assert_close(ranked.scores, expected.sort(dim=1, descending=True).values, atol=1e-5, rtol=1e-5)
    unique = matcher.score_unique_pairs(images, torch.arange(6), every).scores
    torch.testing.assert_close(unique, expected, atol=2e-5, rtol=1e-5)
    ledger = found.ledger(3)
    assert float(ledger.score) == pytest.approx(float(found.score[3]), abs=1e-6)


@pytest.mark.parametrize("matcher", MATCHERS[:3])
def test_the_order_of_images_and_blocks_does_not_matter(matcher, monkeypatch):
    images = made()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    every = torch.arange(6).expand(6, -1)
    whole = matcher.score_unique_pairs(images, torch.arange(6), every).scores
    shuffled = matcher.score_unique_pairs(images[order], torch.arange(6), every).scores
    assert torch.equal(shuffled, whole[order][:, order])
    monkeypatch.setattr("diml.matching.matcher.BLOCK_BYTES", 1)
    torch.testing.assert_close(matcher.score(images, images, every), whole, atol=2e-5, rtol=1e-5)


def test_copies_that_differ_in_their_masses_only_have_one_score_in_any_order():
    images = made(1)[[0, 0, 0]]
    masses = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.25] * 4])
    every = torch.arange(3).expand(3, -1)
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        given = Regions(images.dense, images.pooled, masses=masses[order])
        scores = Matcher(weights="rollout").score_unique_pairs(given, torch.arange(3), every).scores
        back = torch.tensor(order).argsort()
        found.append(scores[back][:, back])
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int16])
def test_masses_stay_as_they_are_in_every_storage(dtype):
    images = made()
    stored = images.quantized(dtype) if dtype in (torch.int8, torch.int16) else images.to(dtype)
    assert torch.equal(stored.masses, images.masses)
    some = stored[[4, 1]]
    assert isinstance(some, Regions)
    assert torch.equal(some.masses, images.masses[[4, 1]])
    every = torch.arange(6).expand(6, -1)
    query = images if isinstance(stored, QuantizedRegions) else stored
    scores = Matcher(weights="rollout").score(query, stored, every)
    tolerance = 0.05 if dtype in (torch.int8, torch.float16, torch.bfloat16) else 1e-3
    expected = Matcher(weights="rollout").score(images, images, every)
    torch.testing.assert_close(scores.float(), expected, atol=tolerance, rtol=0)


@given(rows=st.lists(st.integers(-5, 4), min_size=1, max_size=6), cut=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_indexing_joining_and_pickling_keep_the_masses_with_their_images(rows, cut):
    images = made(5)
    some = images[rows]
    assert torch.equal(some.masses, images.masses[rows])
    assert torch.equal(Regions.cat([images[:cut], images[cut:]]).masses, images.masses)
    assert torch.equal(pickle.loads(pickle.dumps(some)).masses, some.masses)
    assert torch.equal(images[torch.arange(5) % 2 == 0].masses, images.masses[::2])


def test_joined_with_images_without_masses_there_are_none_and_the_reason_is_theirs():
    images = made()
    without = Regions(images.dense, images.pooled, massless="the index keeps none")
    joined = Regions.cat([images, without])
    assert joined.masses is None
    assert joined.massless == "the index keeps none"


@pytest.mark.parametrize("matcher", MATCHERS[:1])
def test_without_masses_the_error_says_which_side_and_why(matcher):
    images = made()
    without = Regions(images.dense, images.pooled, massless="Conv2d is no transformer")
    candidates = torch.zeros(6, 1, dtype=torch.int64)
    for call, side in (
        (lambda: matcher.match(images, without), "gallery"),
        (lambda: matcher.match(without, images), "query"),
        (lambda: matcher.score(without, images, candidates), "query"),
        (lambda: matcher.score(images, without.quantized(), candidates), "gallery"),
        (lambda: matcher.rerank(images, without, nearest(images, without, 2).order), "gallery"),
        (lambda: matcher.score_unique_pairs(without, torch.arange(6), candidates), "query"),
    ):
        with pytest.raises(ValueError, match=f"weights: 'rollout' needs .*{side} has none: Conv2d is no transformer"):
            call()


def test_weights_given_by_hand_replace_the_masses():
    images = made()
    weights = torch.rand(6, 4), torch.rand(6, 4)
    expected = Matcher().match(images, images, weights=weights)
    found = Matcher(weights="rollout").match(images, images, weights=weights)
    torch.testing.assert_close(found.score, expected.score)


@pytest.mark.parametrize(
    ("masses", "error", "said"),
    [
        (torch.full((6, 4), 0.25).double(), TypeError, "masses: need a float32 tensor"),
        (torch.full((6, 3), 1 / 3), ValueError, r"masses: need shape \(N, R\)"),
        (torch.full((6, 4), 0.3), ValueError, "sum to 1 an image, got 1.2 in 6 of 6 images, the first 0"),
        (torch.tensor([[0.5, 0.5, 0.5, -0.5]] * 6), ValueError, "at least 0"),
        (torch.full((6, 4), torch.nan), ValueError, "sum to 1 an image"),
        ([[0.25] * 4] * 6, TypeError, "masses: need a float32 tensor"),
    ],
)
def test_masses_that_cannot_be_are_refused(masses, error, said):
    images = made()
    with pytest.raises(error, match=said):
        Regions(images.dense, images.pooled, masses=masses)
    if not isinstance(masses, list):
        packed = images.quantized()
        with pytest.raises(error, match=said):
            QuantizedRegions(packed.codes, packed.scale, packed.pooled, packed.grid, masses)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -1.0])
def test_raw_masses_of_any_scale_are_scaled_and_impossible_ones_refused(wrong):
    maps = torch.randn(2, 3, 2, 2)
    regions = Regions.from_maps(maps, masses=np.array([[[1.0, 2], [3, 4]], [[0, 0], [0, 0]]]))
    torch.testing.assert_close(regions.masses, torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25] * 4]))
    masses = torch.ones(2, 2, 2)
    masses[1, 0, 1] = wrong
    with pytest.raises(ValueError, match="masses: need finite values of at least 0, got others in 1 of 2 images"):
        Regions.from_maps(maps, masses=masses)
    with pytest.raises(ValueError, match=r"masses: need shape \(N, H, W\) of the maps"):
        Regions.from_maps(maps, masses=torch.ones(2, 4))


def test_a_region_without_mass_is_matched_by_nothing():
    images = made(2)
    masses = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.25] * 4])
    found = Matcher(weights="rollout").match(
        *(Regions(images.dense, images.pooled, masses=masses)[[i]] for i in (0, 1))
    )
    assert found.plan[0, [0, 3]].sum() == pytest.approx(0, abs=1e-6)
    assert found.plan.sum() == pytest.approx(1, abs=1e-5)
