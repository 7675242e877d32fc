"""Parts marked on an image: an outline each, a number on a disc, or a tint.

Legend: R regions of a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle

from diml.explain.blocks import Style
from diml.explain.canvas import Canvas, ink_on
from diml.explain.outlines import connected_cells, draw_outline, outline_path
from diml.explain.panels import Panel, Side

#: A part of `Summary.to_dict()`.
Row = Mapping[str, Any]


def check_colours(colours: Sequence[str]) -> None:
    """Raise ValueError unless these are colours `#rrggbb`, at least one."""
    wrong = [c for c in colours if not (len(c) == 7 and c[0] == "#" and set(c[1:]) <= set("0123456789abcdefABCDEF"))]
    if wrong or not colours or isinstance(colours, str):
        raise ValueError(f"colours: need at least one as #rrggbb, got {wrong[0] if wrong else colours!r}")


def colour_of_part(part: int, colours: Sequence[str]) -> str:
    """The colour of a part, numbered from 1."""
    return colours[(part - 1) % len(colours)]


def regions_of(row: Row, side: Side) -> Sequence[int]:
    """The regions of a part in the image of a side."""
    regions: Sequence[int] = row["regions_q" if side.role == "query" else "regions_g"]
    return regions


def tint(axes: Axes, side: Side, rows: Sequence[Row], colours: Sequence[str]) -> None:
    """Tint the cells of each part in its colour."""
    columns = side.layout[1]
    for row in rows:
        for region in regions_of(row, side):
            y, x = divmod(region, columns)
            colour = colour_of_part(row["part"], colours)
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="none", alpha=0.28, zorder=2))


def outline_parts(canvas: Canvas, panel: Panel, rows: Sequence[Row], colours: Sequence[str], style: Style) -> None:
    """The outline of each part, and its number on each of its pieces that is large enough."""
    line = max(1.2, 0.2 * style.text)
    for row in rows:
        colour = colour_of_part(row["part"], colours)
        name = f"outline-{panel.side.role}-{row['part']}"
        draw_outline(canvas, outline_path(panel, regions_of(row, panel.side), line), colour, line, name)
    wide, high = panel.cell_size
    radius = 0.8 * style.em
    inset = 1.25 * line * 100 / 72
    taken: list[tuple[float, float]] = []
    for row in rows:
        for number, piece in enumerate(connected_cells(regions_of(row, panel.side), panel.side.layout[1])):
            spots = [(x + inset + radius, y + inset + radius) for x, y in (panel.cell(region) for region in piece)]
            if wide < 2 * (radius + inset) or high < 2 * (radius + inset):
                spots = [(x + wide / 2, y + high / 2) for x, y in (panel.cell(region) for region in piece)]
            free = [spot for spot in spots if all(_apart(spot, other, 2.1 * radius) for other in taken)]
            if not free and number == 0:  # cells smaller than numbers: letters at least do not cover each other
                free = [spot for spot in spots if all(_apart(spot, other, 1.5 * radius) for other in taken)]
            if free:
                taken.append(free[0])
                name = f"badge-{panel.side.role}-{row['part']}"
                badge(canvas, taken[-1], row["part"], radius, colours, style, name)


def _apart(spot: tuple[float, float], other: tuple[float, float], distance: float) -> bool:
    return max(abs(spot[0] - other[0]), abs(spot[1] - other[1])) >= distance


def badge(
    canvas: Canvas,
    centre: tuple[float, float],
    part: int,
    radius: float,
    colours: Sequence[str],
    style: Style,
    gid: str,
) -> None:
    """The number of a part on a disc of its colour."""
    colour = colour_of_part(part, colours)
    disc = Circle(centre, radius, facecolor=colour, edgecolor="white", linewidth=0.12 * style.text, zorder=4)
    canvas.sheet.add_patch(disc)
    size = max(6.0, 0.9 * style.text)
    canvas.text(
        *centre, str(part), size=size, color=ink_on(colour), weight="bold", ha="center", va="center_baseline", zorder=5
    ).set_gid(gid)
