"""Lines between regions that matched, and small boxes with their contributions, placed so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from diml.explain.canvas import PALETTE, PIXELS_PER_INCH, Canvas, ink_on, text_width
from diml.explain.formatting import decimals, signed
from diml.explain.panels import Array, Panel
from diml.matching import Ledger
from diml.matching.ledger import Flow

MOST_LINES: Final = 20
_CASING: Final = 2.6  # white outline of a line in points, both sides together: visible on any photo


def check_lines(top: int) -> None:
    """Raise ValueError for more lines than fit into a figure."""
    if not 0 <= top <= MOST_LINES:
        raise ValueError(f"top: need 0 to {MOST_LINES} lines, got {top}; `Ledger.top` lists any number")


def drawn_flows(ledger: Ledger, top: int, chosen: Sequence[tuple[int, int]] | None = None) -> list[Flow]:
    """The flows to draw, largest contribution first.

    Args:
        ledger: of the pair.
        top: number of largest positive contributions: a line means that something was added to the score.
        chosen: instead of these, pairs of regions (query, gallery), whatever they contribute.

    Raises:
        ValueError: too many lines, or there is no such pair of regions.
    """
    check_lines(top)
    if chosen is None:
        return [flow for flow in ledger.top(top) if flow.contribution > 0]
    check_lines(len(chosen))
    rows, columns = ledger.plan.shape
    for q, g in chosen:
        if not (0 <= q < rows and 0 <= g < columns):
            raise ValueError(f"flows: need pairs of regions (0..{rows - 1}, 0..{columns - 1}), got ({q}, {g})")
    flows = [
        Flow(q, g, *(float(part[q, g]) for part in (ledger.plan, ledger.cosine, ledger.contributions)))
        for q, g in dict.fromkeys((int(q), int(g)) for q, g in chosen)
    ]
    return sorted(flows, key=lambda flow: -flow.contribution)


def colour_of(rank: int, colours: Sequence[str] = PALETTE) -> str:
    """The colour of the line of a rank counted from 0; colours repeat, so boxes also carry the rank."""
    return colours[rank % len(colours)]


def values_width(flows: Sequence[Flow], size: float, ranks_only: bool = False) -> float:
    """Width in pixels of the widest value box of flows."""
    texts = _labels(flows, ranks_only)
    return max((text_width(text, size, "bold") for text in texts), default=0.0) + 0.56 * size * PIXELS_PER_INCH / 72


def _labels(flows: Sequence[Flow], ranks_only: bool) -> list[str]:
    if ranks_only:
        return [str(rank + 1) for rank in range(len(flows))]
    digits = decimals(flows[0].contribution) if flows else 3
    return [f"{rank + 1} · {signed(flow.contribution, digits)}" for rank, flow in enumerate(flows)]


def slot_height(size: float) -> float:
    """Minimal distance of two value boxes in pixels."""
    return 1.75 * size * PIXELS_PER_INCH / 72


def draw_flows(
    canvas: Canvas,
    query: Panel,
    gallery: Panel,
    flows: Sequence[Flow],
    top: float,
    bottom: float,
    *,
    size: float = 9.5,
    colours: Sequence[str] = PALETTE,
    ranks_only: bool = False,
) -> None:
    """Draw the flows of a pair, the first as the thickest line, with their values in a column between the images.

    Args:
        canvas: to draw on.
        query, gallery: the left and the right panel.
        flows: as of `drawn_flows`, largest first.
        top, bottom: vertical range of the values in pixels.
        size: of the values in points; lines are in proportion.
        colours: of the lines, `#rrggbb`.
        ranks_only: write the rank of a flow without its contribution.
    """
    if not flows:
        return
    middle = (query.left + query.width + gallery.left) / 2
    slots = _slots(query, gallery, flows, middle, top, bottom, slot_height(size))
    ends_q = _ends(query, [flow.region_q for flow in flows], slots)
    ends_g = _ends(gallery, [flow.region_g for flow in flows], slots)
    scale = size / 9.5
    for panel, regions in ((query, {f.region_q for f in flows}), (gallery, {f.region_g for f in flows})):
        _outline(canvas, panel, regions, scale)
    most = flows[0].contribution
    for rank, label in reversed(list(enumerate(_labels(flows, ranks_only)))):
        part = max(0.0, flows[rank].contribution / most) if most > 0 else 0.0
        colour, width = colour_of(rank, colours), (1.6 + 4.4 * part) * scale
        _line(canvas, rank, colour, width, ends_q[rank], (middle, float(slots[rank])), ends_g[rank], scale)
        _value(canvas, rank, colour, label, (middle, float(slots[rank])), size)


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


def _slots(
    query: Panel, gallery: Panel, flows: Sequence[Flow], middle: float, top: float, bottom: float, slot: float
) -> Array:
    """Vertical position of each value box: where the straight line crosses the middle, moved apart."""
    wanted = []
    for flow in flows:
        (x0, y0), (x1, y1) = _centre(query, flow.region_q), _centre(gallery, flow.region_g)
        wanted.append(y0 + (y1 - y0) * (middle - x0) / (x1 - x0))
    gap = min(1.5 * slot, max(slot, (bottom - top) / (len(flows) + 1)))
    return spread(np.array(wanted), gap, top + slot / 2, bottom - slot / 2)


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


def _outline(canvas: Canvas, panel: Panel, regions: set[int], scale: float) -> None:
    wide, high = panel.cell_size
    for region in sorted(regions):
        for colour, width in (("black", 2.6), ("white", 1.3)):
            box = Rectangle(panel.cell(region), wide, high, fill=False, edgecolor=colour, linewidth=width * scale)
            box.set(gid=f"cell-{panel.side.role}-{region}", joinstyle="miter")
            canvas.sheet.add_patch(box)


def _line(
    canvas: Canvas,
    rank: int,
    colour: str,
    width: float,
    start: tuple[float, float],
    value: tuple[float, float],
    end: tuple[float, float],
    scale: float,
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
    casing = _CASING * scale
    for what, ink, more in (("edge", "#00000070", casing + scale), ("casing", "white", casing), ("flow", colour, 0.0)):
        patch = PathPatch(path, fill=False, edgecolor=ink, linewidth=width + more, capstyle="round")
        patch.set_gid(f"{what}-{rank}")
        canvas.sheet.add_patch(patch)
    place = [start[0], end[0]], [start[1], end[1]]
    dots = canvas.sheet.scatter(*place, s=62 * scale**2, color=colour, edgecolors="white")
    dots.set(linewidth=1.6 * scale, gid=f"ends-{rank}", zorder=3)


def _value(canvas: Canvas, rank: int, colour: str, label: str, place: tuple[float, float], size: float) -> None:
    box = {"boxstyle": "round,pad=0.28,rounding_size=0.35", "facecolor": colour, "edgecolor": "white", "linewidth": 1}
    how: dict[str, Any] = {"color": ink_on(colour), "weight": "bold", "bbox": box, "zorder": 5}
    canvas.text(*place, label, size=size, ha="center", **how).set_gid(f"value-{rank}")
