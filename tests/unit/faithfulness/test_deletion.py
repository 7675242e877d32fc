"""Orders, images with regions blurred, and areas under curves."""

import numpy as np
import pytest
import torch
from PIL import Image

from diml.faithfulness.deletion import (
    ComposedImages,
    area,
    baseline_credit,
    composed,
    curve_rows,
    cut,
    order_by,
    shuffled,
    steps_of,
)
from diml.faithfulness.ledgers import LEDGERS


def test_order_is_by_decreasing_credit_and_ties_are_random():
    generator = np.random.default_rng(0)
    assert order_by(np.array([0.1, 0.7, 0.2]), generator).tolist() == [1, 2, 0]
    first = {int(order_by(torch.zeros(4), generator)[0]) for _ in range(60)}
    assert first == {0, 1, 2, 3}


def test_credit_is_the_row_sums_of_the_ledger(random_match):
    found = random_match((2, 2), (3, 3), 2)
    assert LEDGERS["credit"].read(found, 1).credit.sum() == pytest.approx(float(found.structural[1]), abs=1e-6)
    credit = baseline_credit(found, 1)
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
    made = ComposedImages(view, (2, 2))
    curves = curve_rows(made, {"a": cut(np.arange(4), counts), "b": cut(np.arange(4)[::-1].copy(), counts)})
    clear, gone = (np.asarray(image) for image in made.images[:2])
    assert (clear == np.asarray(view)).all()
    assert clear.std() > 5 * gone.std()
    assert set(curves) == {(kind, order) for kind in ("deletion", "insertion") for order in "ab"}
    for (kind, _), places in curves.items():
        assert len(places) == len(counts)
        assert (places[0], places[-1]) == ((0, 1) if kind == "deletion" else (1, 0))
    # what deletion in one order leaves after one step, insertion in the opposite order has after all but one
    left = np.asarray(made.images[curves["deletion", "a"][1]])
    assert (left == np.asarray(made.images[curves["insertion", "b"][3]])).all()
    assert (left[:16, :16] == gone[:16, :16]).all()
    assert (left[16:] == clear[16:]).all()


def test_an_image_of_several_orders_is_made_once():
    view = Image.fromarray(np.random.default_rng(6).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    made = ComposedImages(view, (3, 3))
    orders = {"a": np.arange(9), "b": np.array([1, 0, 2, 3, 4, 5, 6, 7, 8]), "reversed": np.arange(9)[::-1].copy()}
    curves = curve_rows(made, {name: cut(order, steps_of(9, 9)) for name, order in orders.items()})
    assert curves["deletion", "a"] == curves["insertion", "reversed"][::-1]
    assert [x == y for x, y in zip(curves["deletion", "a"], curves["deletion", "b"], strict=True)].count(False) == 1
    assert (
        len(made.images) == 2 + 2 * 8 + 2
    )  # both ends; deletion and insertion of `a`; the one step of `b` that differs
    assert len({image.tobytes() for image in made.images}) == len(made.images)


def test_another_image_can_take_the_place_of_the_blurred_one():
    view = Image.fromarray(np.random.default_rng(7).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    noise = shuffled(view, np.random.default_rng(0))
    before, after = (np.asarray(image).reshape(-1, 3).tolist() for image in (view, noise))
    assert before != after
    assert sorted(before) == sorted(after)
    made = ComposedImages(view, (2, 2), noise)
    left = np.asarray(made.images[made.row("deletion", np.array([3]))])
    assert (left[16:, 16:] == np.asarray(noise)[16:, 16:]).all()
    assert (left[:16] == np.asarray(view)[:16]).all()


def test_the_area_of_known_curves():
    assert area(np.array([1.0, 0.0]), [0, 4]) == pytest.approx(0.5)
    assert area(np.array([2.0, 2.0, 2.0]), [0, 1, 4]) == pytest.approx(2.0)
    assert area(np.array([1.0, 0.0, 0.0]), [0, 1, 4]) == pytest.approx(1 / 8)
