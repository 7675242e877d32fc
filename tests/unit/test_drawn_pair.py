"""The drawn pair of sample images."""

import numpy as np
import pytest

from diml.assets import asset_status
from diml.explain.explanation import match_pair
from drawn_pair import PLACES, drawn_pair


def test_the_images_are_the_same_at_each_call() -> None:
    for first, again in zip(drawn_pair(96), drawn_pair(96), strict=True):
        assert first.mode == "RGB"
        assert first.size == (96, 96)
        assert first.tobytes() == again.tobytes()


def test_each_object_has_its_colour_at_its_place_in_both_images() -> None:
    images = [np.asarray(image, dtype=float) for image in drawn_pair(128)]
    for name, places in PLACES.items():
        colours = []
        for image, place in zip(images, places, strict=True):
            x, y, reach = (round(value * 128) for value in (place.x, place.y, place.radius / 3))
            colours.append(image[y - reach : y + reach, x - reach : x + reach].mean(axis=(0, 1)))
        assert np.abs(colours[0] - colours[1]).max() < 25, name


def test_objects_move_and_stay_inside() -> None:
    for first, second in PLACES.values():
        assert abs(first.x - second.x) + abs(first.y - second.y) > 0.4
        for place in (first, second):
            assert place.radius < min(place.x, place.y, 1 - place.x, 1 - place.y)


@pytest.mark.parametrize("size", [31, 2049])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size: need 32 to 2048 pixels, got {size}"):
        drawn_pair(size)


def test_the_default_model_matches_each_object_with_itself() -> None:
    if not any(status.cached for status in asset_status() if status.asset.name == "mobilenetv2"):
        pytest.skip("the MobileNetV2 weights are not in the cache; `diml demo` fetches them")
    found = match_pair(*drawn_pair(256))

    def object_at(region: int, which: int) -> str:
        """The object nearest to the centre of a cell; the model sees the central 7/8 of the image."""
        row, column = divmod(region, 4)
        x, y = (1 / 16 + (at + 0.5) / 4 * 7 / 8 for at in (column, row))
        return min(PLACES, key=lambda name: (PLACES[name][which].x - x) ** 2 + (PLACES[name][which].y - y) ** 2)

    lines = [(object_at(flow.region_q, 0), object_at(flow.region_g, 1)) for flow in found.ledger().top(8)]
    assert all(first == second for first, second in lines)
    assert {first for first, _ in lines} == set(PLACES)
    together = sum(
        float(found.plan[0, q, g]) for q in range(16) for g in range(16) if object_at(q, 0) == object_at(g, 1)
    )
    assert together > 0.8  # of the mass; the chance level is 0.25
