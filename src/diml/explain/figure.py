"""The figure of one pair: images, lines between regions, plan, cosines and the score as a sum.

Legend: Rq, Rg regions of the two sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from diml.explain.canvas import ALARM, FAINT, FONT, INK, QUIET, Canvas, ink_on
from diml.explain.flows import SLOT, colour_of, draw_flows, drawn_flows
from diml.explain.formatting import MINUS, TIMES, Grid, cell_name, decimals, ledger_text, share_text, signed
from diml.explain.panels import HEAT, Array, Panel, heat_scale, sides_of
from diml.matching import Ledger, Match
from diml.matching.ledger import Flow

WIDTH: Final = 1200  # pixels at 100 dpi
_EDGE: Final = 28.0
_SIDE: Final = 440.0  # of an image
_QUERY: Final = 46.0  # left edges
_GALLERY: Final = 624.0
_TOP: Final = 142.0  # of the images
_MATRIX: Final = 250.0
_ROW: Final = 22.5


def draw_match(
    match: Match,
    pair: int = 0,
    *,
    images: tuple[Image.Image, Image.Image] | None = None,
    names: tuple[str, str] | None = None,
    top: int = 8,
    note: str = "",
) -> Figure:
    """Draw which region of one image matched which region of the other, and how that adds up to the score.

    Args:
        match: B pairs.
        pair: which of them, -B..B-1.
        images: RGB, showing exactly what the regions cover; without them the weights are drawn on blank tiles.
        names: of the two images.
        top: number of lines, 0 to 20: the largest positive contributions.
        note: a line below the title, in the colour of warnings.

    Returns:
        A matplotlib figure, 12 inches wide (1200 px at its own 100 dpi); save it with `figure.savefig("why.png")`.
        Cells are named by column (letter) and row (number), A1 at the top left.

    Raises:
        IndexError: there is no such pair.
        ValueError: `top` is out of range, or there are not two images or names.

    Source: Zhao et al., ICCV 2021, figures 4 and 5, with the ledger beside them.

    Example:
        >>> draw_match(match(a, b)).savefig("why.png")
    """
    query, gallery = sides_of(match, pair, images, names)
    ledger = match.ledger(pair)
    flows = drawn_flows(ledger, top)
    needed = max(SLOT * len(flows), 120.0)
    band = max(needed, *(min(_SIDE, _SIDE / side.aspect) for side in (query, gallery)))
    warnings = {name: text for name, text in (("note", note), ("warning", _warning(match, pair))) if text}
    start = _TOP + (14 + 20 * (len(warnings) - 1) if warnings else 0)
    lower = start + band + 78
    height = lower + max(_MATRIX + 66, (len(flows) + 4) * _ROW + 20)
    canvas = Canvas(WIDTH, height)
    _draw_head(canvas, ledger, flows, warnings)

    panels = []
    scale = heat_scale((query, gallery))
    for side, left, rows_at in ((query, _QUERY, "left"), (gallery, _GALLERY, "right")):
        panel = Panel.fit(side, left, start, _SIDE, band)
        panel.draw(canvas, scale, rows_at=rows_at)
        caption = canvas.text(left, start - 36, side.role, size=11.5, weight="bold")
        used = canvas.text_width(side.role, 11.5, "bold") + 12
        if side.name != side.role:  # an image without a name of its own is called by its role
            canvas.text(left + used, start - 36, side.name, size=10.5, color=QUIET, space=_SIDE - used)
        caption.set_gid(f"caption-{side.role}")
        if side.grid is None:
            canvas.text(left, start + band + 16, "no known grid: regions in their order", size=9.5, color=QUIET)
        panels.append(panel)
    draw_flows(canvas, panels[0], panels[1], flows, start, start + band)
    _draw_scale(canvas, scale, start, band)
    _draw_matrices(canvas, ledger, flows, lower)
    _draw_ledger(canvas, ledger, flows, 800.0, lower)
    return canvas.figure


def _warning(match: Match, pair: int) -> str:
    """A sentence where the plan has not converged, else nothing."""
    if bool(match.converged[pair]):
        return ""
    error, steps = float(match.marginal_error[pair]), int(match.iterations[pair])
    return (
        f"Not converged: marginal error {error:.1e} after {steps} iterations; "
        "raise max_iterations or epsilon before trusting details."
    )


def _draw_head(canvas: Canvas, ledger: Ledger, flows: Sequence[Flow], warnings: Mapping[str, str]) -> None:
    canvas.text(_EDGE, 30, ledger_text(ledger), size=17, weight="bold").set_gid("title")
    legend = f" Boxes: rank · contribution (mass {TIMES} cosine)." if flows else ""
    about = f"{share_text(ledger, flows)}.{legend}"
    canvas.text(_EDGE, 60, about, size=10.5, color=QUIET).set_gid("share")
    for row, (name, text) in enumerate(warnings.items()):
        size = canvas.fitting_size([text], 10.5, WIDTH - 2 * _EDGE)
        canvas.text(_EDGE, 82 + 20 * row, text, size=size, color=ALARM, weight="bold").set_gid(name)


def _draw_scale(canvas: Canvas, scale: Normalize, top: float, band: float) -> None:
    """The common scale of the heat maps, to the right of the gallery image."""
    height = min(band, 300.0)
    axes = canvas.axes(_GALLERY + _SIDE + 28, top + (band - height) / 2, 14, height)
    axes.set_gid("scale-weights")
    bar = canvas.figure.colorbar(ScalarMappable(scale, HEAT), cax=axes)
    _style_scale(bar, "weight of a region (share of mass)")


def _style_scale(bar: Any, label: str) -> None:
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    bar.ax.tick_params(labelsize=9, labelcolor=QUIET, color=QUIET, length=3, labelfontfamily=FONT)
    bar.outline.set_edgecolor(FAINT)
    bar.solids.set_edgecolor("face")
    if label:
        bar.set_label(label, fontsize=9.5, color=QUIET, fontfamily=FONT)


def _draw_matrices(canvas: Canvas, ledger: Ledger, flows: Sequence[Flow], top: float) -> None:
    plan, cosine = (matrix.double().cpu().numpy() for matrix in (ledger.plan, ledger.cosine))
    _draw_matrix(canvas, "plan", "Transport plan", plan, ledger, flows, 84.0, top)
    _draw_matrix(canvas, "cosine", "Cosine of the regions", cosine, ledger, flows, 464.0, top)


def _draw_matrix(
    canvas: Canvas, what: str, title: str, values: Array, ledger: Ledger, flows: Sequence[Flow], left: float, top: float
) -> None:
    """One (Rq, Rg) matrix with its scale, the drawn flows marked in their colours."""
    canvas.text(left, top - 16, title, size=11, weight="bold")
    unit, power = _unit(float(values.max())) if what == "plan" else ("", 0)
    start = left + canvas.text_width(title, 11, "bold") + 10
    canvas.text(start, top - 16, unit, size=9.5, color=QUIET)
    axes = canvas.axes(left, top, _MATRIX, _MATRIX)
    axes.set_gid(what)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if low < 0:
        low, high = -max(-low, high), max(-low, high)
    elif what == "cosine":
        low = min(float(values.min()), 0.9 * high)
    high = high or 1.0
    image = axes.imshow(
        values, aspect="auto", interpolation="nearest", vmin=low, vmax=high, cmap="PuOr_r" if low < 0 else "Greys"
    )
    image.set_gid(f"image-{what}")
    for rank in reversed(range(len(flows))):
        place = (flows[rank].region_g, flows[rank].region_q)
        for colour, width in (("white", 3.4), (colour_of(rank), 1.9)):
            axes.plot(*place, marker="s", ms=9, mfc="none", mec=colour, mew=width, clip_on=False)
    _name_axis(axes.xaxis, ledger.grid_g, values.shape[1])
    _name_axis(axes.yaxis, ledger.grid_q, values.shape[0])
    axes.set_xlabel("gallery region", fontsize=9.5, color=INK, fontfamily=FONT)
    axes.set_ylabel("query region", fontsize=9.5, color=INK, fontfamily=FONT)
    for spine in axes.spines.values():
        spine.set_edgecolor(FAINT)
    bar = canvas.figure.colorbar(image, cax=canvas.axes(left + _MATRIX + 10, top, 11, _MATRIX))
    _style_scale(bar, "")
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value / 10.0**power:.3g}".replace("-", MINUS))


def _unit(largest: float) -> tuple[str, int]:
    """The unit in which shares of mass are written with few digits, in words, and its power of ten."""
    if largest >= 0.001 or largest <= 0:
        return "share of mass", 0
    power = math.floor(math.log10(largest))
    return "share of mass, in 10" + f"{power}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")), power


def _name_axis(axis: Any, grid: Grid | None, regions: int) -> None:
    """At most seven names of regions: at the beginnings of the grid's rows, else evenly spaced."""
    step = grid[1] if grid is not None and grid[0] > 1 else 1
    starts = np.arange(0, regions, step)
    starts = starts[:: int(np.ceil(len(starts) / 7))]
    axis.set_ticks(starts, [cell_name(int(region), grid) for region in starts])
    axis.set_tick_params(labelsize=9, labelcolor=QUIET, color=QUIET, length=3, labelfontfamily=FONT)


def _draw_ledger(canvas: Canvas, ledger: Ledger, flows: Sequence[Flow], left: float, top: float) -> None:
    """The contributions of the drawn flows, the rest, and the sum."""
    right = WIDTH - _EDGE
    canvas.text(left, top - 16, "Contributions to the structural score", size=11, weight="bold")
    columns = (left + 68, left + 128, left + 204, left + 266, right)
    y = top + 10
    for x, name in zip(columns, ("query", "gallery", "mass", "cosine", "contribution"), strict=True):
        canvas.text(x, y, name, size=9, color=QUIET, ha="right")
    digits = decimals(flows[0].contribution) if flows else 3
    _rule(canvas, left, right, y + _ROW / 2)
    for rank, flow in enumerate(flows):
        y += _ROW
        colour = colour_of(rank)
        chip = {"boxstyle": "round,pad=0.22,rounding_size=0.3", "facecolor": colour, "edgecolor": "none"}
        canvas.text(left + 12, y, str(rank + 1), size=9, color=ink_on(colour), weight="bold", ha="center", bbox=chip)
        cells = (cell_name(flow.region_q, ledger.grid_q), cell_name(flow.region_g, ledger.grid_g))
        values = (flow.mass, flow.cosine, flow.contribution)
        row = (*cells, *(signed(value, n) for value, n in zip(values, (digits, 3, digits), strict=True)))
        for number, (x, text) in enumerate(zip(columns, row, strict=True)):
            written = canvas.text(x, y, text, size=9.5, ha="right", weight="bold" if number == 4 else "normal")
            written.set_gid(f"ledger-{rank}-{number}")
    others = ledger.plan.numel() - len(flows)
    rest = ledger.structural - sum(flow.contribution for flow in flows)
    if others:
        y += _ROW
        words = f"all {'other ' if flows else ''}{others:,} pairs of regions"
        canvas.text(left, y, words, size=9.5, color=QUIET)
        canvas.text(right, y, signed(rest, digits), size=9.5, ha="right", color=QUIET).set_gid("ledger-rest")
    _rule(canvas, left, right, y + _ROW / 2)
    y += _ROW + 2
    canvas.text(left, y, "structural", size=10.5, weight="bold")
    total = canvas.text(right, y, signed(ledger.structural, digits), size=10.5, ha="right", weight="bold")
    total.set_gid("ledger-sum")


def _rule(canvas: Canvas, left: float, right: float, y: float) -> None:
    canvas.sheet.plot([left, right], [y, y], color=FAINT, linewidth=1)
