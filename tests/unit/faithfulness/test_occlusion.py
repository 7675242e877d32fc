"""Drawn occlusions: what is drawn is what is reported, reproducibly, and shares of regions against counted pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diml.data import Preprocess
from diml.data.region_coverage import view_box
from diml.faithfulness.occlusion import OCCLUSIONS, Occluded, occlude

SIZES = st.tuples(st.integers(12, 40), st.integers(12, 40))
OTHER = (Image.new("RGB", (40, 30), (250, 10, 240)),)


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An image of which no pixel is as dark, as pale or as purple as what is drawn."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(60, 100, (size[1], size[0], 3), dtype=np.uint8))


@given(kind=st.sampled_from(list(OCCLUSIONS)), size=SIZES, seed=st.integers(0, 2**32))
def test_only_covered_pixels_change(kind, size, seed):
    image = photo(size)
    found = occlude(kind, image, np.random.default_rng(seed), OTHER)
    changed = (np.asarray(found.image) != np.asarray(image)).any(axis=2)
    assert found.image.size == image.size
    assert found.covered.shape == (size[1], size[0])
    assert not (changed & ~found.covered).any()
    if kind != "noise":  # a random value may be the old one
        assert (changed == found.covered).all()


@pytest.mark.parametrize("kind", OCCLUSIONS)
def test_a_generator_of_the_same_state_draws_the_same(kind):
    image = photo((92, 112))
    first, again, other = (occlude(kind, image, np.random.default_rng(seed), OTHER) for seed in (3, 3, 4))
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert np.array_equal(first.covered, again.covered)
    assert not np.array_equal(np.asarray(first.image), np.asarray(other.image))


@given(size=SIZES, seed=st.integers(0, 2**32))
def test_clutter_covers_a_fifth_to_two_fifths_and_borders_one_side(size, seed):
    rounding = 1 / size[0] + 1 / size[1]
    clutter = occlude("clutter", photo(size), np.random.default_rng(seed), OTHER)
    assert 0.2 - rounding <= clutter.covered.mean() <= 0.4 + rounding
    for kind in ("border", "noise"):
        covered = occlude(kind, photo(size), np.random.default_rng(seed)).covered
        assert 0.35 - rounding <= covered.mean() <= 0.5 + rounding
        assert covered.all(axis=0).any() or covered.all(axis=1).any()


def test_sunglasses_hide_the_eyes_and_a_mask_the_mouth():
    image = photo((92, 112))
    for seed in range(20):
        eyes = occlude("sunglasses", image, np.random.default_rng(seed)).covered
        mouth = occlude("mask", image, np.random.default_rng(seed)).covered
        assert eyes[53, [29, 62]].all()
        assert not eyes[:30].any()
        assert not eyes[80:].any()
        assert mouth[84, 46]
        assert not mouth[:55].any()


def test_clutter_is_the_middle_of_the_other_image():
    colours = np.zeros((100, 100, 3), dtype=np.uint8)
    colours[20:80, 20:80] = 255
    found = occlude("clutter", photo((50, 50)), np.random.default_rng(0), [Image.fromarray(colours)])
    inside = np.asarray(found.image)[found.covered]
    assert (inside == 255).mean() > 0.6


@given(
    kind=st.sampled_from(list(OCCLUSIONS)),
    size=SIZES,
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 100),
)
def test_shares_of_regions_against_a_loop_over_pixels(kind, size, grid, seed):
    found = occlude(kind, photo(size), np.random.default_rng(seed), OTHER)
    preprocess = Preprocess(size=28, resize=32)
    left, top, right, bottom = view_box(preprocess, size)
    expected = np.zeros(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            y0, y1 = (top + (bottom - top) * (row + end) / grid[0] for end in (0, 1))
            x0, x1 = (left + (right - left) * (column + end) / grid[1] for end in (0, 1))
            for y in range(size[1]):
                for x in range(size[0]):
                    overlap = max(0.0, min(y + 1, y1) - max(y, y0)) * max(0.0, min(x + 1, x1) - max(x, x0))
                    expected[row, column] += overlap * found.covered[y, x] / ((y1 - y0) * (x1 - x0))
    assert found.regions(preprocess, grid) == pytest.approx(expected.flatten(), abs=1e-9)


def test_nothing_and_everything_are_exactly_0_and_1():
    for value in (False, True):
        found = Occluded(photo((92, 112)), np.full((112, 92), value))
        assert (found.regions(Preprocess(), (7, 7)) == float(value)).all()
    assert repr(found) == "Occluded(92 x 112 pixels, 100% covered)"


def test_errors_name_what_is_needed():
    with pytest.raises(ValueError, match=r"no occlusion 'maks'.*mask"):
        occlude("maks", photo((20, 20)), np.random.default_rng(0))
    with pytest.raises(ValueError, match="clutter needs an image of another class"):
        occlude("clutter", photo((20, 20)), np.random.default_rng(0))
