"""Known warps: the geometry agrees with the pixels, and nothing outside of the photo is ever shown."""

import numpy as np
import pytest
from PIL import Image

from diml.faithfulness.warps import (
    CORNERS,
    WARPS,
    Warp,
    cell_centres,
    homography,
    mapped,
    true_cells,
    window,
)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(3)


def test_under_the_identity_every_cell_is_its_own_counterpart(generator):
    truth = true_cells(WARPS["identity"](generator), (3, 5), (3, 5))
    assert truth.inside.all()
    assert truth.cell.tolist() == list(range(15))


def test_a_flip_mirrors_the_columns(generator):
    truth = true_cells(WARPS["flip"](generator), (2, 3), (2, 3))
    assert truth.cell.tolist() == [2, 1, 0, 5, 4, 3]


def test_a_shift_moves_by_two_of_seven_cells_and_two_columns_or_rows_leave():
    moves = set()
    for seed in range(20):
        truth = true_cells(WARPS["shift"](np.random.default_rng(seed)), (7, 7), (7, 7))
        assert truth.inside.sum() == 35
        moves |= set((truth.cell - np.arange(49))[truth.inside].tolist())
    assert moves == {2, -2, 14, -14}


@pytest.mark.parametrize("kind", WARPS)
def test_both_sides_stay_within_the_photo_and_differ_by_seed_where_there_is_a_choice(kind):
    made = [WARPS[kind](np.random.default_rng(seed)) for seed in range(8)]
    for warp in made:
        for side in (warp.query, warp.gallery):
            corners = mapped(side, CORNERS)
            assert corners.min() >= -1e-9
            assert corners.max() <= 1 + 1e-9
    distinct = {warp.gallery.tobytes() for warp in made}
    assert (len(distinct) > 1) == (kind not in ("identity", "flip"))


@pytest.mark.parametrize("kind", WARPS)
def test_the_pixels_move_as_the_geometry_says(kind):
    """A smooth ramp: its value at a place tells which place of the photo is seen there."""
    side = 256
    y, x = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5, indexing="ij")
    ramp = np.stack([x, y, np.zeros_like(x)], axis=2)
    photo = Image.fromarray(np.rint(np.clip(ramp, 0, 255)).astype(np.uint8))
    warp = WARPS[kind](np.random.default_rng(1))
    query, gallery = (np.asarray(seen, dtype=float) for seen in warp.sides(photo, 112))
    truth = true_cells(warp, (7, 7), (7, 7))
    centres = cell_centres((7, 7))[truth.inside]
    for centre, place in zip(centres, truth.place[truth.inside], strict=True):
        if min(place.min(), 1 - place.max(), centre.min(), 1 - centre.max()) < 0.05:
            continue
        here, there = ((point * 112).astype(int) for point in (centre, place))
        assert query[here[1], here[0]] == pytest.approx(gallery[there[1], there[0]], abs=5)


def test_a_homography_maps_the_corners_to_the_given_points():
    corners = np.array([[0.1, 0.0], [0.9, 0.2], [1.0, 1.0], [0.0, 0.8]])
    assert mapped(homography(corners), CORNERS) == pytest.approx(corners)


def test_near_is_the_cell_and_what_touches_it(generator):
    near = true_cells(WARPS["identity"](generator), (3, 3), (3, 3)).near
    assert near.sum(axis=1).tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]
    assert (near == near.T).all()


def test_a_window_that_cannot_be_inverted_is_refused():
    with pytest.raises(ValueError, match="gallery: need an invertible"):
        Warp(np.eye(3), window(0, 0, 0))


def test_where_nothing_of_the_query_is_in_the_gallery_nothing_is_inside():
    truth = true_cells(Warp(window(0, 0, 0.4), window(0.5, 0.5, 0.4)), (2, 2), (2, 2))
    assert not truth.inside.any()
