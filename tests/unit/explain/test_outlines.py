"""Outlines follow the border of their cells, and stay inside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.explain.canvas import Canvas
from diml.explain.outlines import border_loops, connected_cells, draw_outline, inset_loop, outline_path
from diml.explain.panels import Panel, Side

COLUMNS, ROWS = 6, 5
groups = st.sets(st.integers(0, COLUMNS * ROWS - 1), min_size=1)


def area(loop: list[tuple[float, float]]) -> float:
    """Signed area of a loop with y down: positive where it runs clockwise."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(loop, loop[1:] + loop[:1], strict=True)) / 2


@given(groups)
def test_the_loops_enclose_as_much_as_the_cells_cover(cells: set[int]) -> None:
    assert sum(area(list(loop)) for loop in border_loops(cells, COLUMNS)) == len(cells)


@given(groups)
def test_corners_are_real_corners(cells: set[int]) -> None:
    for loop in border_loops(cells, COLUMNS):
        assert len(loop) >= 4
        for number, (x, y) in enumerate(loop):
            before, after = loop[number - 1], loop[(number + 1) % len(loop)]
            assert (before[0] == x) != (after[0] == x)
            assert (before[1] == y) != (after[1] == y)


@given(groups, st.floats(0.01, 0.45))
def test_an_inset_outline_stays_inside_its_own_cells(cells: set[int], distance: float) -> None:
    for loop in border_loops(cells, COLUMNS):
        for x, y in inset_loop(loop, distance):
            assert math.floor(y) * COLUMNS + math.floor(x) in cells
            assert min(abs(value - round(value)) for value in (x, y)) == pytest.approx(distance)


@given(groups)
def test_connected_cells_are_a_division_into_pieces_that_do_not_touch(cells: set[int]) -> None:
    pieces = connected_cells(cells, COLUMNS)
    assert sorted(cell for piece in pieces for cell in piece) == sorted(cells)
    assert [len(piece) for piece in pieces] == sorted((len(piece) for piece in pieces), reverse=True)
    places = [{divmod(cell, COLUMNS) for cell in piece} for piece in pieces]
    for number, piece in enumerate(places):
        beside = {(r + dr, c + dc) for r, c in piece for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))}
        assert all(not beside & other for at, other in enumerate(places) if at != number)
        assert len(piece) == 1 or all(({(r, c + 1), (r, c - 1), (r + 1, c), (r - 1, c)} & piece) for r, c in piece)


def test_a_ring_has_an_outer_and_an_inner_loop() -> None:
    loops = border_loops([0, 1, 2, 6, 8, 12, 13, 14], COLUMNS)
    assert sorted(area(list(loop)) for loop in loops) == [-1, 9]


def test_cells_that_touch_at_a_corner_have_loops_of_their_own() -> None:
    assert sorted(area(list(loop)) for loop in border_loops([0, 7], COLUMNS)) == [1, 1]


def test_outlines_of_neighbours_do_not_cover_each_other() -> None:
    canvas = Canvas(300, 300)
    panel = Panel(Side("query", "", np.ones(4) / 4, (2, 2), None), 10, 10, 280, 280)
    paths = [outline_path(panel, regions, 2.0) for regions in ([0, 1], [2, 3])]
    for number, path in enumerate(paths):
        draw_outline(canvas, path, "#0072B2", 2.0, f"outline-{number}")
    boxes = [canvas.figure.findobj(lambda a, n=n: a.get_gid() == f"casing-outline-{n}")[0] for n in (0, 1)]
    half = boxes[0].get_linewidth() * 100 / 72 / 2
    assert paths[0].get_extents().y1 + half <= paths[1].get_extents().y0 - half + 1e-6
