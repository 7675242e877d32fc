"""Each part has its outline and its number on both images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from diml.explain.blocks import Style
from diml.explain.canvas import PARTS_PALETTE, Canvas
from diml.explain.panels import Panel, Side
from diml.explain.part_marks import check_colours, colour_of_part, outline_parts

SIDE = Side("query", "", np.full(16, 1 / 16), (4, 4), None)


def rows_of(*groups: tuple[int, ...]) -> list[dict[str, Any]]:
    return [{"part": number, "regions_q": group} for number, group in enumerate(groups, 1)]


def test_every_piece_has_the_number_of_its_part() -> None:
    canvas = Canvas(500, 500)
    outline_parts(canvas, Panel(SIDE, 20, 20, 460, 460), rows_of((0, 1, 15), (5, 6)), PARTS_PALETTE, Style.of(6.9))
    numbers = [text.get_text() for text in canvas.figure.findobj(Text) if text.get_text()]
    assert sorted(numbers) == ["1", "1", "2"]


def test_numbers_are_inside_their_own_part() -> None:
    canvas, panel = Canvas(500, 500), Panel(SIDE, 20, 20, 460, 460)
    rows = rows_of((0, 1, 4), (5, 6, 9, 10), (15,))
    outline_parts(canvas, panel, rows, PARTS_PALETTE, Style.of(6.9))
    for row in rows:
        [text] = canvas.figure.findobj(lambda a, part=row["part"]: a.get_gid() == f"badge-query-{part}")
        x, y = text.get_position()
        wide, high = panel.cell_size
        assert int((y - panel.top) / high) * 4 + int((x - panel.left) / wide) in row["regions_q"]


@pytest.mark.parametrize("size", [24, 60])
def test_numbers_never_cover_each_other_in_cells_that_are_too_small(size: float, overlapping_texts: Any) -> None:
    canvas = Canvas(200, 200)
    side = Side("query", "", np.full(196, 1 / 196), (14, 14), None)
    rows = rows_of(*((cell, cell + 14) for cell in range(6)))
    outline_parts(canvas, Panel(side, 20, 20, size, size), rows, PARTS_PALETTE, Style.of(3.3))
    assert overlapping_texts(canvas.figure) == []


def test_colours_repeat() -> None:
    assert [colour_of_part(part, ["#111111", "#222222"]) for part in (1, 2, 3)] == ["#111111", "#222222", "#111111"]


@pytest.mark.parametrize("colours", [[], ["red"], ["#12345"], ["#12345g"], "#123456"])
def test_colours_are_checked(colours: Any) -> None:
    with pytest.raises(ValueError, match=r"colours: need at least one as #rrggbb, got"):
        check_colours(colours)
