"""Lines between regions that matched, and small boxes with their contributions, placed so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from diml.explain.canvas import PALETTE, Canvas, ink_on
from diml.explain.formatting import decimals
from diml.explain.panels import Array, Panel
from diml.matching import Ledger
from diml.matching.ledger import Flow

MOST_LINES: Final = 20
SLOT: Final = 23.0  # minimal distance of two value boxes in pixels
_CASING: Final = 2.6  # white outline of a line in points, both sides together: visible on any photo


def check_lines(top: int) -> None:
    """Raise ValueError for more lines than fit into a figure."""
    if not 0 <= top <= MOST_LINES:
        raise ValueError(f"top: need 0 to {MOST_LINES} lines, got {top}; `Ledger.top` lists any number")


def drawn_flows(ledger: Ledger, top: int) -> list[Flow]:
    """The `top` largest positive contributions: a line always means that something was added to the score."""
    check_lines(top)
    return [flow for flow in ledger.top(top) if flow.contribution > 0]


def colour_of(rank: int) -> str:
    """The colour of the line of a rank counted from 0; colours repeat after 8, so boxes also carry the rank."""
    return PALETTE[rank % len(PALETTE)]


def draw_flows(canvas: Canvas, query: Panel, gallery: Panel, flows: Sequence[Flow], top: float, bottom: float) -> None:
    """Draw the flows of a pair, the first as the thickest line, with their values in a column between the images.

    Args:
        canvas: to draw on.
        query, gallery: the left and the right panel.
        flows: as of `drawn_flows`, largest first.
        top, bottom: vertical range of the values in pixels.
    """
    if not flows:
        return
    middle = (query.left + query.width + gallery.left) / 2
    slots = _slots(query, gallery, flows, middle, top, bottom)
    ends_q = _ends(query, [flow.region_q for flow in flows], slots)
    ends_g = _ends(gallery, [flow.region_g for flow in flows], slots)
    for panel, regions in ((query, {f.region_q for f in flows}), (gallery, {f.region_g for f in flows})):
        _outline(canvas, panel, regions)
    digits = decimals(flows[0].contribution)
    for rank in reversed(range(len(flows))):
        width = 1.6 + 4.4 * flows[rank].contribution / flows[0].contribution
        _line(canvas, rank, width, ends_q[rank], (middle, float(slots[rank])), ends_g[rank])
        label = f"{rank + 1} · {flows[rank].contribution:.{digits}f}"
        _value(canvas, rank, label, middle, float(slots[rank]))


def spread(wanted: Array, gap: float, low: float, high: float) -> Array:
    """Positions nearest to the wanted ones (least squares), in the same order, `gap` apart, between low and high.

    Where the range is too small the gap shrinks. Pool-adjacent-violators on the positions minus their gaps.
    """
    count = len(wanted)
    gap = min(gap, (high - low) / max(1, count - 1))
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(count)
    blocks: list[tuple[float, int]] = []  # mean, size
    for value in wanted[order] - steps:
        blocks.append((float(value), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean, size), (other, more) = blocks[-2:]
            blocks[-2:] = [((mean * size + other * more) / (size + more), size + more)]
    level = np.repeat([mean for mean, _ in blocks], [size for _, size in blocks])
    places = np.empty(count)
    places[order] = np.clip(level, low, max(low, high - steps[-1])) + steps
    return places


def _slots(query: Panel, gallery: Panel, flows: Sequence[Flow], middle: float, top: float, bottom: float) -> Array:
    """Vertical position of each value box: where the straight line crosses the middle, moved apart."""
    wanted = []
    for flow in flows:
        (x0, y0), (x1, y1) = _centre(query, flow.region_q), _centre(gallery, flow.region_g)
        wanted.append(y0 + (y1 - y0) * (middle - x0) / (x1 - x0))
    gap = min(1.5 * SLOT, max(SLOT, (bottom - top) / (len(flows) + 1)))
    return spread(np.array(wanted), gap, top + SLOT / 2, bottom - SLOT / 2)


def _centre(panel: Panel, region: int) -> tuple[float, float]:
    (left, top), (wide, high) = panel.cell(region), panel.cell_size
    return left + wide / 2, top + high / 2


def _ends(panel: Panel, regions: Sequence[int], slots: Array) -> list[tuple[float, float]]:
    """An end point inside the cell of each flow; flows that share a cell end below each other, as their values are."""
    ends = [_centre(panel, region) for region in regions]
    high = panel.cell_size[1]
    for region in set(regions):
        sharing = sorted((rank for rank, r in enumerate(regions) if r == region), key=lambda rank: slots[rank])
        step = min(15.0, 0.8 * high / len(sharing))
        for place, rank in enumerate(sharing):
            x, y = ends[rank]
            ends[rank] = (x, y + (place - (len(sharing) - 1) / 2) * step)
    return ends


def _outline(canvas: Canvas, panel: Panel, regions: set[int]) -> None:
    wide, high = panel.cell_size
    for region in sorted(regions):
        for colour, width in (("black", 2.6), ("white", 1.3)):
            box = Rectangle(panel.cell(region), wide, high, fill=False, edgecolor=colour, linewidth=width)
            box.set(gid=f"cell-{panel.side.role}-{region}", joinstyle="miter")
            canvas.sheet.add_patch(box)


def _line(
    canvas: Canvas,
    rank: int,
    width: float,
    start: tuple[float, float],
    value: tuple[float, float],
    end: tuple[float, float],
) -> None:
    """A smooth line from cell to value box to cell, horizontal at the box, outlined in white, with dots at its ends."""
    points = [start]
    for (x0, y0), (x1, y1) in ((start, value), (value, end)):
        reach = 0.42 * (x1 - x0)
        level_first = (x0, y0) == value
        first = (x0 + reach, y0) if level_first else (x0 + reach, y0 + 0.42 * (y1 - y0))
        last = (x1 - reach, y1 - 0.42 * (y1 - y0)) if level_first else (x1 - reach, y1)
        points += [first, last, (x1, y1)]
    path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 6])
    layers = (("edge", "#00000070", _CASING + 1.0), ("casing", "white", _CASING), ("flow", colour_of(rank), 0.0))
    for what, colour, more in layers:
        patch = PathPatch(path, fill=False, edgecolor=colour, linewidth=width + more, capstyle="round")
        patch.set_gid(f"{what}-{rank}")
        canvas.sheet.add_patch(patch)
    dots = canvas.sheet.scatter([start[0], end[0]], [start[1], end[1]], s=62, color=colour_of(rank), edgecolors="white")
    dots.set(linewidth=1.6, gid=f"ends-{rank}", zorder=3)


def _value(canvas: Canvas, rank: int, label: str, x: float, y: float) -> None:
    colour = colour_of(rank)
    box = {"boxstyle": "round,pad=0.28,rounding_size=0.35", "facecolor": colour, "edgecolor": "white", "linewidth": 1}
    canvas.text(x, y, label, size=9.5, ha="center", color=ink_on(colour), weight="bold", bbox=box, zorder=5).set_gid(
        f"value-{rank}"
    )
