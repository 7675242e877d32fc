"""Perturbations change the image and not its size; unchanged entries are counted correctly."""

import numpy as np
import pytest
import torch
from PIL import Image

from diml.faithfulness.stability import (
    NOISE,
    PERTURBATIONS,
    as_jpeg,
    chance,
    noisy,
    share_unchanged,
    stability,
    top_pairs,
)


@pytest.fixture
def view() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_changes_values_and_keeps_the_size(name, view):
    changed = PERTURBATIONS[name](view, np.random.default_rng(1))
    assert changed.size == view.size
    assert changed.mode == "RGB"
    difference = np.abs(np.asarray(changed, dtype=float) - np.asarray(view, dtype=float))
    assert 1 < difference.mean() < 40


def test_noise_stays_within_its_bounds_and_follows_its_generator():
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    values = np.asarray(noisy(grey, np.random.default_rng(0)), dtype=float) - 128
    assert np.abs(values).max() <= NOISE * 255 + 1
    assert values.std() == pytest.approx(NOISE * 255 / 3**0.5, rel=0.05)
    assert noisy(grey, np.random.default_rng(0)) == noisy(grey, np.random.default_rng(0))
    assert noisy(grey, np.random.default_rng(0)) != noisy(grey, np.random.default_rng(1))


def test_jpeg_hardly_changes_a_uniform_image():
    grey = Image.new("RGB", (64, 64), (100, 110, 120))
    difference = np.asarray(as_jpeg(grey, np.random.default_rng(0)), dtype=float) - np.asarray(grey, dtype=float)
    assert np.abs(difference).max() <= 3


def test_the_share_of_top_entries_that_stay():
    before = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    assert top_pairs(before, 2).tolist() == [[0, 1]]
    assert share_unchanged(before, before, 2).tolist() == [1]
    assert share_unchanged(before, -before, 2).tolist() == [0]
    assert share_unchanged(before, torch.tensor([[[4.0, 0.0], [5.0, 1.0]]]), 2).tolist() == [0.5]
    assert share_unchanged(before, -before, 9).tolist() == [1]  # more than there are: all


def test_a_match_is_stable_against_itself_and_chance_is_small(random_match):
    found = random_match((3, 3), (4, 4), 3)
    assert {name: shares.tolist() for name, shares in stability(found, found, 5).items()} == {
        "ledger": [1, 1, 1],
        "argmax": [1, 1, 1],
    }
    assert chance(found, 5) == pytest.approx(5 / 144)
    assert chance(found, 1000) == 1
