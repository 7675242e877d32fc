"""The figure of a pair for experts: regions, weights, lines, plan, cosines, reduced costs, and the score as a sum.

Legend: Rq, Rg regions of the two sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from diml.explain.blocks import Block, Item, Style, check_panels, in_rows, paragraph, stacked, warning
from diml.explain.canvas import FAINT, FAMILY, INK, PALETTE, QUIET, Canvas, ink_on, text_width
from diml.explain.explanation import Explanation
from diml.explain.flows import colour_of, draw_flows, drawn_flows, slot_height, values_width
from diml.explain.formatting import MINUS, TIMES, decimals, ledger_text, percent, share_text, signed
from diml.explain.panels import HEAT, HEAT_SCALE, Array, Panel, Side, sides_of
from diml.explain.part_marks import check_colours
from diml.explain.scale import common_scale
from diml.explain.scale_figure import draw_scale, scale_height, scale_title
from diml.matching import Ledger, Match
from diml.matching.cell_names import Grid, cell_name
from diml.matching.ledger import Flow

RegionsPanel = Literal["headline", "images", "plan", "cosine", "reduced", "ledger", "scale"]

_DPI: Final = 100
_NARROW_DPI: Final = 200  # of figures for papers, so that they are sharp as pixels too
_COLUMN_SPACE: Final = 2.4  # between matrices, in em


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What every panel needs to know."""

    ledger: Ledger
    flows: Sequence[Flow]
    style: Style
    colours: Sequence[str]


def draw_match(
    match: Match,
    pair: int = 0,
    *,
    images: tuple[Image.Image, Image.Image] | None = None,
    names: tuple[str, str] | None = None,
    top: int = 8,
    note: str = "",
    overlay: bool = True,
    colours: Sequence[str] = PALETTE,
    width: float | None = None,
    panels: Sequence[str] | None = None,
    flows: Sequence[tuple[int, int]] | None = None,
) -> Figure:
    """Draw which region of one image matched which region of the other, and how that adds up to the score.

    Args:
        match: B pairs.
        pair: which of them, -B..B-1.
        images: RGB, showing exactly what the regions cover; without them the weights are drawn on blank tiles.
        names: of the two images.
        top: number of lines, 0 to 20: the largest positive contributions.
        note: a line below the title.
        overlay: draw the weights over the images, on a scale from 0 to 2/R that is clear at the uniform weight 1/R.
        colours: `#rrggbb` of the lines; they repeat.
        width: in inches, 2.5 to 24; 3.3 and 6.9 are the columns of papers.
        panels: any of "headline", "images", "plan", "cosine", "reduced" (reduced costs and potentials of an exact
            plan), "ledger" and "scale"; all of them where omitted, "reduced" where it is known.
        flows: draw these pairs of regions (query, gallery) instead of the largest.

    Returns:
        A matplotlib figure, 12 inches wide where `width` is omitted; save it with `figure.savefig("why.png")`.
        Cells are named by column (letter) and row (number), A1 at the top left.

    Raises:
        IndexError: there is no such pair.
        ValueError: `top`, `width`, a panel, a colour or a pair of regions is out of range, there are not two images or
            names, or reduced costs are asked for of a plan that is not exact.

    Source: Zhao et al., ICCV 2021, figures 4 and 5, with the ledger beside them.

    Example:
        >>> draw_match(match(a, b)).savefig("why.png")
    """
    sides = sides_of(match, pair, images, names)
    style = Style.of(width, dense=True)
    check_colours(colours)
    one = Explanation.of(match, pair=pair)
    shown = _chosen_panels(panels, one)
    ledger = one.ledger()
    drawn = _Drawn(ledger, drawn_flows(ledger, top, flows), style, colours)
    blocks: list[Block] = []
    if "headline" in shown:
        blocks += _head(drawn, note, _convergence(one))
    if "images" in shown:
        blocks.append(_images(drawn, sides, overlay))
    blocks += _lower(drawn, one, shown)
    return stacked(style, blocks, _DPI if width is None else _NARROW_DPI).figure


def _chosen_panels(panels: Sequence[str] | None, one: Match) -> tuple[str, ...]:
    shown = check_panels(panels, get_args(RegionsPanel))
    if one.potential_q is not None:
        return shown
    if panels is not None and "reduced" in panels:
        transport = one.matcher.matching == "transport"
        remedy = "draw with plan='exact'" if transport else "compare with matching='transport'"
        raise ValueError(f"panels: need an exact plan for 'reduced', got another one; {remedy}")
    return tuple(name for name in shown if name != "reduced")


def _convergence(one: Match) -> str:
    """A sentence where the plan has not converged, else nothing."""
    if bool(one.converged[0]):
        return ""
    error, steps = float(one.marginal_error[0]), int(one.iterations[0])
    return (
        f"Not converged: marginal error {error:.1e} after {steps} iterations; "
        "raise max_iterations or epsilon before trusting details."
    )


def _head(drawn: _Drawn, note: str, convergence: str) -> list[Block]:
    style, flows = drawn.style, drawn.flows
    legend = f" Boxes: rank · contribution (mass {TIMES} cosine)." if flows else ""
    blocks = [
        paragraph(style, ledger_text(drawn.ledger), 1.6 * style.text, gap=0, gid="title", weight="bold"),
        paragraph(style, f"{share_text(drawn.ledger, flows)}.{legend}", style.text, gap=2, gid="share", color=QUIET),
    ]
    unmatched = _unmatched_text(drawn.ledger)
    if unmatched:
        blocks.append(paragraph(style, unmatched, style.text, gap=0, gid="unmatched", color=QUIET))
    if note:
        blocks.append(paragraph(style, note, style.text, gap=0, gid="note", color=QUIET))
    if convergence:
        blocks.append(warning(style, convergence, gap=0.5 * style.em, gid="warning"))
    return blocks


def _unmatched_text(ledger: Ledger) -> str:
    """How much mass of either image is not transported; empty where all of it is."""
    if ledger.unmatched_q is None or ledger.unmatched_g is None:
        return ""
    query, gallery = (percent(float(side.double().sum())) for side in (ledger.unmatched_q, ledger.unmatched_g))
    sides = f"{query} of the query, {gallery} of the gallery image"
    return f"Unmatched mass: {sides}; regions that are mostly unmatched are grey and hatched."


def _mostly_unmatched(ledger: Ledger, side: Side) -> list[int]:
    """Regions with more than half of their weight unmatched."""
    left = ledger.unmatched_q if side.role == "query" else ledger.unmatched_g
    if left is None:
        return []
    mostly = (left.double().cpu().numpy() > 0.5 * side.weights) & (side.weights > 0)
    return [int(region) for region in np.flatnonzero(mostly)]


def _images(drawn: _Drawn, sides: tuple[Side, Side], overlay: bool) -> Block:
    """Both images with their weights, lines between their regions, and the scale of the weights below."""
    style, flows = drawn.style, drawn.flows
    em, size = style.em, style.text
    labels = 1.8 * em  # the numbers of the rows
    ranks_only = style.narrow  # no space for the contributions, which are in the table
    between = max(3.0 * em, values_width(flows, size, ranks_only) + (1.6 if ranks_only else 2.6) * em)
    wide = (style.space - between - 2 * labels) / 2
    band = max(slot_height(size) * len(flows), 6.0 * em, *(min(wide, wide / side.aspect) for side in sides))
    head = 3.0 * em  # caption and names of the columns
    key = (
        (4.7 if style.narrow else 3.4) * em
        if overlay
        else 1.6 * em
        if any(side.grid is None for side in sides)
        else 0.0
    )

    def draw(canvas: Canvas, top: float) -> None:
        panels = []
        start = top + head
        lefts = (style.margin + labels, style.right - labels - wide)
        for side, left, rows_at in zip(sides, lefts, ("left", "right"), strict=True):
            panel = Panel.fit(side, left, start, wide, band)
            grey = _mostly_unmatched(drawn.ledger, side)
            axes = panel.draw_image(canvas, f"panel-{side.role}", grey=grey)
            panel.draw_grid(axes)
            if overlay:
                panel.draw_weights(axes)
            panel.name_cells(canvas, small=style.small, rows_at=rows_at)
            _caption(canvas, side, left, top + 0.7 * em, wide, style)
            if side.grid is None:
                text = "no known grid: regions in their order"
                canvas.text(left, start + band + 0.9 * em, text, size=style.small, color=QUIET, space=wide)
            panels.append(panel)
        inks, ends = drawn.colours, (start, start + band)
        draw_flows(canvas, panels[0], panels[1], flows, *ends, size=size, colours=inks, ranks_only=ranks_only)
        if overlay:
            _weights_key(canvas, style, sides, start + band + 1.6 * em)

    return Block(head + band + key, draw, 0.8 * em)


def _caption(canvas: Canvas, side: Side, left: float, y: float, space: float, style: Style) -> None:
    canvas.text(left, y, side.role, size=1.15 * style.text, weight="bold").set_gid(f"caption-{side.role}")
    used = text_width(side.role, 1.15 * style.text, "bold") + 0.8 * style.em
    if side.name != side.role:  # an image without a name of its own is called by its role
        canvas.text(left + used, y, side.name, size=style.text, color=QUIET, space=space - used)


def _weights_key(canvas: Canvas, style: Style, sides: tuple[Side, Side], top: float) -> None:
    """The scale of the weights, which is the same in every figure."""
    em = style.em
    text = "weight of a region (share of mass)"
    left = style.margin + 1.8 * em
    canvas.text(left, top + 0.4 * em, text, size=style.small, color=QUIET)
    if style.narrow:
        top += 1.3 * em
    else:
        left += text_width(text, style.small) + 1.2 * em
    wide = min(22.0 * em, style.right - 3.2 * em - left)
    axes = canvas.axes(left, top, wide, 0.8 * em)
    axes.set_gid("scale-weights")
    axes.set_facecolor("#B9C0C7")  # weights shade a photo
    bar = canvas.figure.colorbar(ScalarMappable(HEAT_SCALE, HEAT), cax=axes, orientation="horizontal")
    counts = {len(side.weights) for side in sides}
    uniform = f"1/{counts.pop()}" if len(counts) == 1 else "1/R"
    bar.set_ticks([0, 1, 2], labels=["0", f"{uniform} (uniform)", f"2{uniform[1:]} or more"])
    _style_bar(bar, style)


def _style_bar(bar: Any, style: Style) -> None:
    bar.ax.tick_params(
        labelsize=style.small, labelcolor=QUIET, color=QUIET, length=0.25 * style.em, labelfontfamily=FAMILY, pad=2
    )
    bar.outline.set(edgecolor=FAINT, linewidth=0.6)
    bar.solids.set_edgecolor("face")


def _lower(drawn: _Drawn, one: Explanation, shown: Sequence[str]) -> list[Block]:
    """Matrices, ledger and scale in rows: three columns where there is space."""
    style = drawn.style
    columns = 1 if style.narrow else 3
    items = [_matrix(drawn, what, one) for what in ("plan", "cosine", "reduced") if what in shown]
    if "ledger" in shown:
        items.append(_ledger(drawn))
    if "scale" in shown:
        items.append(_score_item(drawn, one))
    return in_rows(style, items, columns, space=_COLUMN_SPACE * style.em, gap=1.5 * style.em)


def _score_item(drawn: _Drawn, one: Explanation) -> Item:
    """The score on the common scale."""
    scale = common_scale(one.matcher, one.calibrator, one.noun)
    summary = {"score": drawn.ledger.score, "ranked_by": one.ranked_by(), "scale": asdict(scale), "threshold": None}
    style = drawn.style

    def draw(canvas: Canvas, left: float, top: float, width: float) -> None:
        canvas.text(left, top + 0.6 * style.em, scale_title(summary), size=1.1 * style.text, weight="bold")
        draw_scale(canvas, summary, left, top + 1.5 * style.em, min(width, 60 * style.em), style.text)

    height = 1.5 * style.em + scale_height(summary, style.text)
    return Item(24 * style.em, lambda _: height, draw, grows=True)


_TITLES: Final[Mapping[str, str]] = {
    "plan": "Transport plan",
    "cosine": "Cosine of the regions",
    "reduced": "Reduced cost",
}


def _matrix(drawn: _Drawn, what: str, one: Explanation) -> Item:
    """One (Rq, Rg) matrix with its scale, the drawn flows marked in their colours."""
    style = drawn.style
    em = style.em
    left_of, right_of = (4.4 if what == "reduced" else 3.6) * em, 4.4 * em  # names of the regions; scale
    above, below = 1.9 * em, 3.2 * em

    def side(width: float) -> float:
        return max(6 * em, min(width - left_of - right_of, (18 if style.narrow else 24) * em))

    def draw(canvas: Canvas, left: float, top: float, width: float) -> None:
        values, unit, power = _values(drawn.ledger, what, one)
        canvas.text(left, top + 0.6 * em, _TITLES[what], size=1.1 * style.text, weight="bold", space=width)
        start = left + text_width(_TITLES[what], 1.1 * style.text, "bold") + 0.7 * em
        if width - (start - left) > text_width(unit, style.small):
            canvas.text(start, top + 0.6 * em, unit, size=style.small, color=QUIET)
        place = (left + left_of, top + above, side(width))
        axes, image = _draw_values(canvas, what, values, drawn, place)
        if what == "reduced":
            axes.tick_params(axis="y", pad=2 + 0.75 * style.text)
            _draw_potentials(canvas, one, place, em)
        bar = canvas.figure.colorbar(
            image, cax=canvas.axes(place[0] + place[2] + 0.7 * em, place[1], 0.8 * em, place[2])
        )
        low, high = _ends(what, values)
        ticks = [value for value in MaxNLocator(5).tick_values(low, high) if low <= value <= high]
        bar.set_ticks(ticks, labels=[f"{value / 10.0**power:.3g}".replace("-", MINUS) for value in ticks])
        _style_bar(bar, style)
        axes.set_gid(what)

    return Item(left_of + right_of + 9 * em, lambda width: above + side(width) + below, draw)


def _values(ledger: Ledger, what: str, one: Explanation) -> tuple[Array, str, int]:
    """The values of a matrix, their unit in words, and the power of ten that they are written in."""
    if what == "reduced":
        assert one.potential_q is not None
        assert one.potential_g is not None
        cost = 1 - ledger.cosine.double()
        reduced = cost - one.potential_q[0].unsqueeze(1).to(cost) - one.potential_g[0].unsqueeze(0).to(cost)
        return reduced.clamp_min(0).cpu().numpy(), "of cosine, to be matched", 0
    values: Array = getattr(ledger, what).double().cpu().numpy()
    unit, power = _unit(float(values.max())) if what == "plan" else ("", 0)
    return values, unit, power


def _draw_values(
    canvas: Canvas, what: str, values: Array, drawn: _Drawn, place: tuple[float, float, float]
) -> tuple[Any, Any]:
    ledger, style = drawn.ledger, drawn.style
    left, top, size = place
    axes = canvas.axes(left, top, size, size)
    low, high = _ends(what, values)
    image = axes.imshow(
        values,
        aspect="auto",
        interpolation="nearest",
        vmin=low,
        vmax=high,
        cmap="PuOr_r" if low < 0 else "Greys_r" if what == "reduced" else "Greys",
    )
    image.set_gid(f"image-{what}")
    scale = style.text / 9.5
    for rank, flow in reversed(list(enumerate(drawn.flows))):
        for colour, line in (("white", 3.4), (colour_of(rank, drawn.colours), 1.9)):
            mark: dict[str, Any] = {"marker": "s", "ms": 9 * scale, "mfc": "none", "mec": colour, "mew": line * scale}
            axes.plot(flow.region_g, flow.region_q, clip_on=False, **mark)
    _name_axis(axes.xaxis, ledger.grid_g, values.shape[1], style, size)
    _name_axis(axes.yaxis, ledger.grid_q, values.shape[0], style, size)
    axes.set_xlabel("gallery region", fontsize=style.small, color=INK, fontfamily=FAMILY, labelpad=2)
    axes.set_ylabel("query region", fontsize=style.small, color=INK, fontfamily=FAMILY, labelpad=2)
    for spine in axes.spines.values():
        spine.set(edgecolor=FAINT, linewidth=0.6)
    return axes, image


def _ends(what: str, values: Array) -> tuple[float, float]:
    """The ends of a matrix's scale; cosines have the same in every figure."""
    if what == "cosine":
        return (-1.0 if values.min() < -0.005 else 0.0), 1.0
    return 0.0, float(values.max()) or 1.0


def _draw_potentials(canvas: Canvas, one: Explanation, place: tuple[float, float, float], em: float) -> None:
    """The potentials of the regions as strips at the left of and above the matrix, relative to their means."""
    left, top, size = place
    assert one.potential_q is not None
    assert one.potential_g is not None
    strips = [side[0].double().cpu().numpy() for side in (one.potential_q, one.potential_g)]
    centred = [strip - strip.mean() for strip in strips]
    reach = max(1e-9, *(float(np.abs(strip).max()) for strip in centred))
    thick = 0.45 * em
    boxes = ((left - 0.6 * em, top, thick, size), (left, top - 0.6 * em, size, thick))
    for role, strip, box in zip(("query", "gallery"), centred, boxes, strict=True):
        axes = canvas.axes(*box)
        axes.set(xticks=[], yticks=[])
        shaped = strip[:, None] if role == "query" else strip[None, :]
        shown = axes.imshow(shaped, aspect="auto", interpolation="nearest", vmin=-reach, vmax=reach, cmap="PuOr_r")
        shown.set_gid(f"potential-{role}")
        for spine in axes.spines.values():
            spine.set_visible(False)


def _unit(largest: float) -> tuple[str, int]:
    """The unit in which shares of mass are written with few digits, in words, and its power of ten."""
    if largest >= 0.001 or largest <= 0:
        return "share of mass", 0
    power = math.floor(math.log10(largest))
    return "share of mass, in 10" + f"{power}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")), power


def _name_axis(axis: Any, grid: Grid | None, regions: int, style: Style, size: float) -> None:
    """Names of regions that fit: at the beginnings of the grid's rows, else evenly spaced."""
    step = grid[1] if grid is not None and grid[0] > 1 else 1
    starts = np.arange(0, regions, step)
    most = max(1, min(7, int(size / (2.6 * style.em))))
    starts = starts[:: int(np.ceil(len(starts) / most))]
    axis.set_ticks(starts, [cell_name(int(region), grid) for region in starts])
    look = {"labelsize": style.small, "labelcolor": QUIET, "color": QUIET, "length": 0.25 * style.em, "pad": 2}
    axis.set_tick_params(labelfontfamily=FAMILY, **look)


def _ledger(drawn: _Drawn) -> Item:
    """The contributions of the drawn flows, the rest, and the sum."""
    style, ledger, flows = drawn.style, drawn.ledger, drawn.flows
    row = 1.72 * style.em
    rest = ledger.plan.numel() > len(flows)
    rows = 1 + len(flows) + rest + 1
    height = 1.5 * style.em + rows * row + 0.6 * style.em

    def draw(canvas: Canvas, left: float, top: float, width: float) -> None:
        _draw_ledger(canvas, drawn, left, left + min(width, 34 * style.em), top, row)

    return Item(27 * style.em, lambda _: height, draw)


def _draw_ledger(canvas: Canvas, drawn: _Drawn, left: float, right: float, top: float, step: float) -> None:
    ledger, flows, style = drawn.ledger, drawn.flows, drawn.style
    em, small = style.em, style.small
    canvas.text(
        left,
        top + 0.6 * em,
        "Contributions to the structural score",
        size=1.1 * style.text,
        weight="bold",
        space=right - left,
    )
    unit = (right - left) / 27  # the columns, in proportion
    columns = [left + unit * at for at in (5.2, 9.8, 15.2, 20.0, 27.0)]
    y = top + 1.5 * em + 0.5 * step
    for x, name in zip(columns, ("query", "gallery", "mass", "cosine", "contribution"), strict=True):
        canvas.text(x, y, name, size=small, color=QUIET, ha="right")
    digits = decimals(flows[0].contribution) if flows else 3
    _rule(canvas, left, right, y + step / 2)
    for rank, flow in enumerate(flows):
        y += step
        colour = colour_of(rank, drawn.colours)
        chip = {"boxstyle": "round,pad=0.22,rounding_size=0.3", "facecolor": colour, "edgecolor": "none"}
        how: dict[str, Any] = {"color": ink_on(colour), "weight": "bold", "ha": "center", "bbox": chip}
        canvas.text(left + 0.9 * em, y, str(rank + 1), size=small, **how)
        cells = (cell_name(flow.region_q, ledger.grid_q), cell_name(flow.region_g, ledger.grid_g))
        values = (flow.mass, flow.cosine, flow.contribution)
        row = (*cells, *(signed(value, n) for value, n in zip(values, (digits, 3, digits), strict=True)))
        for number, (x, text) in enumerate(zip(columns, row, strict=True)):
            weight = "bold" if number == 4 else "normal"
            canvas.text(x, y, text, size=style.text, ha="right", weight=weight).set_gid(f"ledger-{rank}-{number}")
    others = ledger.plan.numel() - len(flows)
    if others:
        y += step
        words = f"all {'other ' if flows else ''}{others:,} pairs of regions"
        rest = ledger.structural - sum(flow.contribution for flow in flows)
        canvas.text(left, y, words, size=style.text, color=QUIET)
        canvas.text(right, y, signed(rest, digits), size=style.text, ha="right", color=QUIET).set_gid("ledger-rest")
    _rule(canvas, left, right, y + step / 2)
    y += step + 2
    canvas.text(left, y, "structural", size=1.1 * style.text, weight="bold")
    total = signed(ledger.structural, digits)
    canvas.text(right, y, total, size=1.1 * style.text, ha="right", weight="bold").set_gid("ledger-sum")


def _rule(canvas: Canvas, left: float, right: float, y: float) -> None:
    canvas.sheet.plot([left, right], [y, y], color=FAINT, linewidth=1)
