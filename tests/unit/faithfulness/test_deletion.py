"""Orders, images with regions blurred, and areas under curves."""

import numpy as np
import pytest
import torch
from PIL import Image

from diml.faithfulness.deletion import area, composed, curve_images, order_by, region_credit, steps_of


def test_order_is_by_decreasing_credit_and_ties_are_random():
    generator = np.random.default_rng(0)
    assert order_by(np.array([0.1, 0.7, 0.2]), generator).tolist() == [1, 2, 0]
    first = {int(order_by(torch.zeros(4), generator)[0]) for _ in range(60)}
    assert first == {0, 1, 2, 3}


def test_credit_is_the_row_sums_of_the_ledger(random_match):
    found = random_match((2, 2), (3, 3), 2)
    credit = region_credit(found, 1)
    assert float(credit["credit"].sum()) == pytest.approx(float(found.structural[1]), abs=1e-6)
    assert credit["argmax"].tolist() == pytest.approx(found.cosine[1].amax(dim=1).tolist())
    assert credit["weights"].tolist() == pytest.approx(found.weight_q[1].tolist())


def test_regions_are_taken_from_the_other_image_and_nothing_else_is():
    black, white = Image.new("RGB", (10, 6), "black"), Image.new("RGB", (10, 6), "white")
    made = np.asarray(composed(black, white, [1, 3], (2, 3)))[:, :, 0]
    expected = np.zeros((6, 10))
    expected[:3, 3:7] = expected[3:, :3] = 255
    assert (made == expected).all()
    assert np.asarray(black).max() == 0


def test_all_regions_together_are_the_other_image():
    black, white = Image.new("RGB", (11, 11), "black"), Image.new("RGB", (11, 11), "white")
    assert np.asarray(composed(black, white, range(16), (4, 4))).min() == 255


def test_steps_go_from_none_to_all_without_repeating():
    assert steps_of(49, 6) == [0, 8, 16, 24, 33, 41, 49]
    assert steps_of(4, 8) == [0, 1, 2, 3, 4]
    assert steps_of(1, 1) == [0, 1]


def test_curves_begin_and_end_where_they_must():
    generator = np.random.default_rng(5)
    view = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    counts = steps_of(4, 4)
    made = curve_images(view, {"a": np.arange(4), "b": np.arange(4)[::-1].copy()}, (2, 2), counts)
    clear, gone = (np.asarray(image) for image in made.images[:2])
    assert (clear == np.asarray(view)).all()
    assert clear.std() > 5 * gone.std()
    assert set(made.curves) == {(kind, order) for kind in ("deletion", "insertion") for order in "ab"}
    for (kind, _), places in made.curves.items():
        assert len(places) == len(counts)
        assert (places[0], places[-1]) == ((0, 1) if kind == "deletion" else (1, 0))
    # what deletion in one order leaves after one step, insertion in the opposite order has after all but one
    left = np.asarray(made.images[made.curves["deletion", "a"][1]])
    assert (left == np.asarray(made.images[made.curves["insertion", "b"][3]])).all()
    assert (left[:16, :16] == gone[:16, :16]).all()
    assert (left[16:] == clear[16:]).all()


def test_the_area_of_known_curves():
    assert area(np.array([1.0, 0.0]), [0, 4]) == pytest.approx(0.5)
    assert area(np.array([2.0, 2.0, 2.0]), [0, 1, 4]) == pytest.approx(2.0)
    assert area(np.array([1.0, 0.0, 0.0]), [0, 1, 4]) == pytest.approx(1 / 8)
