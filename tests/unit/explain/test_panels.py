"""An image, its weights on a scale that is the same in every figure, and sections of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diml.explain.canvas import Canvas
from diml.explain.panels import HEAT, HEAT_SCALE, Panel, Side, section_of
from drawn_pair import drawn_pair


def side_of(grid: tuple[int, int], image: Image.Image | None = None, weights: np.ndarray | None = None) -> Side:
    count = grid[0] * grid[1]
    return Side("query", "", np.full(count, 1 / count) if weights is None else weights, grid, image)


def test_the_uniform_weight_leaves_the_image_as_it_is() -> None:
    assert HEAT(HEAT_SCALE(1.0))[3] == pytest.approx(0, abs=0.02)
    below, above = HEAT(HEAT_SCALE(0.0)), HEAT(HEAT_SCALE(2.0))
    assert below[2] > below[0]  # blue
    assert above[0] > above[2]  # orange
    assert HEAT(HEAT_SCALE(9.0)) == above


def test_nearly_uniform_weights_are_drawn_as_such() -> None:
    weights = np.full(16, 1 / 16) + np.where(np.arange(16) % 2, 1, -1) * 0.001
    canvas, panel = Canvas(200, 200), Panel(side_of((4, 4), weights=weights), 0, 0, 200, 200)
    axes = panel.draw_image(canvas, "panel")
    panel.draw_weights(axes)
    [heat] = canvas.figure.findobj(lambda artist: artist.get_gid() == "weights-query")
    assert np.asarray(heat.get_array()).ravel() == pytest.approx(16 * weights)
    assert heat.cmap(heat.norm(heat.get_array()))[..., 3].max() < 0.05


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_section_contains_its_regions_and_stays_inside(rows: int, columns: int, data: st.DataObject) -> None:
    regions = data.draw(st.lists(st.integers(0, rows * columns - 1), min_size=1, unique=True))
    left, top, right, bottom = section_of(side_of((rows, columns)), regions)
    assert 0 <= left < right <= columns
    assert 0 <= top < bottom <= rows
    for row, column in (divmod(region, columns) for region in regions):
        assert left <= column < column + 1 <= right
        assert top <= row < row + 1 <= bottom


def test_a_section_shows_its_own_pixels_in_their_proportions() -> None:
    pixels = np.zeros((40, 40, 3), dtype=np.uint8)
    pixels[20:30, 10:30] = (200, 0, 0)  # cells 9 and 10 of 4 x 4
    side = side_of((4, 4), Image.fromarray(pixels))
    panel = Panel.fit(side, 0, 0, 100, 100, section_of(side, [9, 10], margin=0.0))
    assert panel.width / panel.height == pytest.approx(2)
    canvas = Canvas(100, 100)
    panel.draw_image(canvas, "thumb")
    canvas.figure.canvas.draw()
    shown = np.asarray(canvas.figure.canvas.buffer_rgba())[:, :, :3]
    assert shown[45:55, 10:90].reshape(-1, 3).tolist() == [[200, 0, 0]] * 800


def test_grey_regions_lose_their_colour_and_others_keep_it() -> None:
    image = Image.new("RGB", (40, 40), (200, 30, 30))
    canvas = Canvas(200, 200)
    Panel(side_of((2, 2), image), 0, 0, 200, 200).draw_image(canvas, "panel", grey=[0])
    canvas.figure.canvas.draw()
    shown = np.asarray(canvas.figure.canvas.buffer_rgba())[:, :, :3].astype(int)
    spread = np.ptp(shown, axis=2)
    assert spread[10:90, 10:90].max() < 20
    assert spread[10:90, 110:190].min() > 150


def test_an_image_is_not_changed_without_weights() -> None:
    image = drawn_pair(64)[0]
    canvas = Canvas(64, 64)
    Panel(side_of((4, 4), image), 0, 0, 64, 64).draw_image(canvas, "panel")
    canvas.figure.canvas.draw()
    shown = np.asarray(canvas.figure.canvas.buffer_rgba())[3:-3, 3:-3, :3].astype(int)
    assert np.abs(shown - np.asarray(image)[3:-3, 3:-3]).max() <= 2
