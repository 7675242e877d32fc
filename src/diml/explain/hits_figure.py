"""A query with its best hits in one figure: a row a hit, with parts or regions, score and whether it is correct."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diml.explain.blocks import Block, Style, paragraph, stacked
from diml.explain.canvas import (
    ALARM,
    FAINT,
    INK,
    PALETTE,
    PARTS_PALETTE,
    QUIET,
    UNMATCHED,
    Canvas,
    ink_on,
    text_width,
)
from diml.explain.explanation import Explanation, Plan, View
from diml.explain.flows import check_lines, colour_of, draw_flows, drawn_flows, slot_height, values_width
from diml.explain.formatting import TIMES, decimals, score_terms, share_text, signed
from diml.explain.panels import Panel, Side, sides_of
from diml.explain.part_marks import badge, check_colours, colour_of_part, outline_parts, regions_of, tint
from diml.explain.scale_figure import draw_scale, draw_scale_key, scale_height
from diml.explain.shown_plan import shown_plan
from diml.explain.summary import summarise
from diml.explain.wording import whole_percent
from diml.matching import Ledger
from diml.matching.cell_names import cell_name
from diml.matching.ledger import Flow, combined

RIGHT: Final = "#00664b"
WRONG: Final = "#b04300"
_MOST_LINES: Final = 8


@dataclass(frozen=True, eq=False)
class DrawnHit:
    """A hit of a query, as `hits_figure` draws it.

    Args:
        match: one pair, the query against the hit.
        correct: whether it has the query's class; None where this is unknown.
        rank: from 1; by default the number of the row.
        note: a few more words, such as its class.
    """

    match: Explanation
    correct: bool | None = None
    rank: int | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class _Row:
    """What is drawn of a hit."""

    hit: DrawnHit
    rank: int
    shown: Explanation
    summary: Mapping[str, Any]
    sides: tuple[Side, Side]
    flows: Sequence[Flow]

    @property
    def ledger(self) -> Ledger:
        return self.shown.ledger()


def hits_figure(
    hits: Sequence[DrawnHit],
    *,
    title: str = "",
    view: View = "parts",
    plan: Plan = "exact",
    top: int = 4,
    parts: int | None = None,
    overlay: bool | None = None,
    colours: Sequence[str] | None = None,
    width: float | None = None,
) -> Figure:
    """Draw a query with its hits, a row each: how sure, the score on the common scale, right or wrong, what matches.

    Args:
        hits: best first, at least one.
        title: of the figure; by default the name of the query.
        view: "parts" that match, or single "regions" with lines between them and the weights over the images.
        plan: that is shown, as of `shown_plan`.
        top: number of largest parts or lines of each hit that are listed, 0 to 8.
        parts: largest number of parts; 3 to 6 where omitted.
        overlay: as of `Explanation.draw`.
        colours: `#rrggbb` of parts or lines, which repeat.
        width: in inches, 2.5 to 24; 12 where omitted.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: no hits, or `top`, `width` or a colour is out of range.

    Example:
        >>> hits_figure([DrawnHit(found, correct=True) for found in best]).savefig("query.png")
    """
    if not hits:
        raise ValueError("hits: need at least one, got none")
    if not 0 <= top <= _MOST_LINES:
        raise ValueError(f"top: need 0 to {_MOST_LINES} parts or lines a hit, got {top}")
    if view not in get_args(View):
        raise ValueError(f"view: need one of {', '.join(get_args(View))}, got {view!r}")
    check_lines(top)
    style = Style.of(width, dense=True)
    inks = (PARTS_PALETTE if view == "parts" else PALETTE) if colours is None else tuple(colours)
    check_colours(inks)
    rows = [_row_of(hit, number, view, plan, top, parts) for number, hit in enumerate(hits, 1)]
    tinted = overlay is not False if view == "regions" else bool(overlay)
    blocks = _head(style, title or hits[0].match.names[0], rows[0], view)
    blocks += [_hit(style, row, view, top, inks, tinted, first=number == 0) for number, row in enumerate(rows)]
    return stacked(style, blocks, 100 if width is None else 200).figure


def _row_of(hit: DrawnHit, number: int, view: View, plan: Plan, top: int, parts: int | None) -> _Row:
    shown = shown_plan(hit.match, 0, plan)
    flows = drawn_flows(shown.ledger(), top) if view == "regions" else []
    sides = sides_of(shown, 0, shown.images, shown.names)
    return _Row(hit, hit.rank or number, shown, summarise(shown, parts=parts).to_dict(), sides, flows)


def _head(style: Style, title: str, first: _Row, view: View) -> list[Block]:
    """The title, how to read a row, and the names of the landmarks of the scales."""
    about = (
        "The query on the left, a hit in each row; parts that match have one number and colour."
        if view == "parts"
        else "The query on the left, a hit in each row. Orange cells weigh more than others, blue ones less; "
        "boxes: rank · contribution to structural."
    )

    def draw(canvas: Canvas, top: float) -> None:
        space = style.space
        canvas.text(style.margin, top + style.em, title, size=1.6 * style.text, weight="bold", space=space).set_gid(
            "title"
        )

    def key(canvas: Canvas, top: float) -> None:
        draw_scale_key(canvas, first.summary, style.margin, top + 0.7 * style.em, style.right, style.small)

    return [
        Block(2 * style.em, draw),
        paragraph(style, about, style.text, gap=0.3 * style.em, gid="about", color=QUIET),
        Block(1.4 * style.em, key, 0.2 * style.em),
    ]


@dataclass(frozen=True)
class _Places:
    """Where the images and the text of a row are, in pixels from the left; text below the images where it is narrow."""

    query: float
    gallery: float
    side: float
    text: float
    below: bool


def _places(style: Style, row: _Row, view: View) -> _Places:
    em = style.em
    labels, between = 0.0, 0.8 * em
    if view == "regions":  # rows are numbered at both sides
        labels = 1.6 * em
        between = max(between, values_width(row.flows, style.small, style.narrow) + 2.2 * em)
    images = style.space if style.narrow else (0.62 if view == "regions" else 0.52) * style.space
    side = (images - between - 2 * labels) / 2
    query = style.margin + labels
    gallery = query + side + between
    if style.narrow:
        return _Places(query, gallery, side, style.margin, True)
    return _Places(query, gallery, side, gallery + side + labels + 1.2 * em, False)


def _hit(style: Style, row: _Row, view: View, top: int, colours: Sequence[str], tinted: bool, *, first: bool) -> Block:
    em, places = style.em, _places(style, row, view)
    head = (3.0 if view == "regions" else 1.5) * em
    least = slot_height(style.small) * len(row.flows)
    band = max(least, *(min(places.side, places.side / side.aspect) for side in row.sides))
    text = _text_height(style, row, view, top)
    if not places.below:
        band = max(band, text - head)
    rule = 1.0 * em
    height = rule + head + band + (text + 0.8 * em if places.below else 0.0)

    def draw(canvas: Canvas, at: float) -> None:
        if not first:
            canvas.sheet.plot([style.margin, style.right], [at, at], color=FAINT, linewidth=1)
        at += rule
        panels = []
        for side, left, rows_at in zip(row.sides, (places.query, places.gallery), ("left", "right"), strict=True):
            panel = _panel(side, left, at + head, places.side, band, view)
            axes = panel.draw_image(canvas, f"panel-{side.role}", grey=_grey(row.summary, side))
            if view == "regions":
                panel.draw_grid(axes)
                if tinted:
                    panel.draw_weights(axes)
                panel.name_cells(canvas, small=style.small, rows_at=rows_at)
            else:
                groups = [part for part in row.summary["parts"] if regions_of(part, side)]
                if tinted or side.image is None or side.grid is None:
                    tint(axes, side, groups, colours)
                outline_parts(canvas, panel, groups, colours, style)
            canvas.text(left, at + 0.6 * em, side.name, size=style.small, color=QUIET, space=places.side)
            panels.append(panel)
        if view == "regions":
            ends = at + head, at + head + band
            look: dict[str, Any] = {"size": style.small, "colours": colours, "ranks_only": style.narrow}
            draw_flows(canvas, panels[0], panels[1], row.flows, *ends, **look)
        under = at + head + band + 0.8 * em if places.below else at
        _draw_text(canvas, style, row, view, top, colours, (places.text, under))

    return Block(height, draw, 0.0 if first else 1.0 * em)


def _panel(side: Side, left: float, top: float, wide: float, band: float, view: View) -> Panel:
    """Images of parts begin at the top, those with lines are in the middle of the lines' values."""
    if view == "regions":
        return Panel.fit(side, left, top, wide, band)
    return Panel.fit(side, left, top, wide, min(band, wide / side.aspect), across=0.0)


def _grey(summary: Mapping[str, Any], side: Side) -> Sequence[int]:
    unmatched = summary["unmatched"]
    regions: Sequence[int] = () if unmatched is None else unmatched[side.role]["regions"]
    return regions


def _text_height(style: Style, row: _Row, view: View, top: int) -> float:
    """Height of `_draw_text`."""
    lines = 1 + (min(top, len(row.summary["parts"])) + 1 if view == "parts" else len(row.flows))
    return (
        (2.2 + 1.9 + 1.7 + 0.5) * style.em
        + scale_height(row.summary, style.small, named=False)
        + 1.75 * lines * style.em
    )


def _draw_text(
    canvas: Canvas,
    style: Style,
    row: _Row,
    view: View,
    top: int,
    colours: Sequence[str],
    place: tuple[float, float],
) -> None:
    """Rank and verdict, how sure, the score as a sum and on the common scale, and what matches."""
    em = style.em
    left, y = place
    _draw_verdict(canvas, style, row, left, y + 0.7 * em)
    y += 2.2 * em
    headline = row.summary["headline"]
    size = canvas.fitting_size([headline], 1.25 * style.text, style.right - left)
    canvas.text(left, y + 0.6 * em, headline, size=size, weight="bold").set_gid(f"headline-{row.rank}")
    y += 1.9 * em
    _draw_sum(canvas, style, row, left, y + 0.5 * em)
    y += 1.7 * em
    draw_scale(canvas, row.summary, left, y, style.right - left, style.small, named=False, gid=f"scale-{row.rank}")
    y += scale_height(row.summary, style.small, named=False) + 0.5 * em
    if view == "parts":
        _draw_parts(canvas, style, row, top, colours, (left, y))
    else:
        _draw_list(canvas, style, row, colours, (left, y))


def _draw_verdict(canvas: Canvas, style: Style, row: _Row, left: float, y: float) -> None:
    """`hit 1   ✓ right   note   not converged`."""
    em, hit = style.em, row.hit
    name = f"hit {row.rank}"
    canvas.text(left, y, name, size=1.3 * style.text, weight="bold")
    x = left + text_width(name, 1.3 * style.text, "bold") + 1.2 * em
    if hit.correct is not None:
        verdict, colour = ("✓ right", RIGHT) if hit.correct else ("✗ wrong", WRONG)
        box = {"boxstyle": "round,pad=0.3,rounding_size=0.4", "facecolor": colour, "edgecolor": "none"}
        how: dict[str, Any] = {"color": "white", "weight": "bold", "bbox": box}
        canvas.text(x, y, verdict, size=style.text, **how).set_gid(f"verdict-{row.rank}")
        x += text_width(verdict, style.text, "bold") + 1.2 * em
    if not bool(row.shown.converged[0]):
        canvas.text(x, y, "not converged", size=style.text, color=ALARM, weight="bold")
        x += text_width("not converged", style.text, "bold") + 1.0 * em
    canvas.text(x, y, hit.note, size=style.text, color=QUIET, space=style.right - x)


def _draw_sum(canvas: Canvas, style: Style, row: _Row, left: float, y: float) -> None:
    """The score as a sum, in a size at which it fits: of what is drawn below, or of the plan that ranks the hits."""
    ledger, scored = row.ledger, row.shown.scored
    structural = ledger.structural if scored is None or row.flows else float(scored[0])
    score = combined(ledger.pooled, structural, ledger.structural_weight)
    terms = score_terms(ledger.pooled, structural, ledger.structural_weight)
    words = [(f"score {signed(score)}", INK)]
    for number, term in enumerate(terms):
        words += [("+" if number else "=", QUIET), (term.text, QUIET)]
    gap = 0.5 * style.em
    size = canvas.fitting_size([text for text, _ in words], style.text, style.right - left, gap=gap)
    for text, colour in words:
        weight = "bold" if colour == INK else "normal"
        canvas.text(left, y, text, size=size, color=colour, weight=weight)
        left += text_width(text, size, weight) + gap


def _draw_parts(
    canvas: Canvas, style: Style, row: _Row, top: int, colours: Sequence[str], place: tuple[float, float]
) -> None:
    """The largest parts with their shares as bars, and the rest."""
    em, (left, y) = style.em, place
    step, summary = 1.75 * em, row.summary
    listed = summary["parts"][:top]
    rest = summary["score"] - sum(part["value"] for part in listed)
    whole = summary["between"]["share"] is not None
    only_look = summary["overall"] and len(listed) == len(summary["parts"])
    lines = [(part["part"], part["value"], part["share"], _where(part)) for part in listed]
    lines.append((None, rest, rest / summary["score"] if whole else None, "overall look" if only_look else "the rest"))
    numbers = [signed(value) if share is None else whole_percent(share) for _, value, share, _ in lines]
    column = max(text_width(number, style.text, "bold") for number in numbers)
    bar_left = left + 2.2 * em + column + 0.8 * em
    bar = 0.34 * (style.right - bar_left)
    for number, (part, _, share, words) in zip(numbers, lines, strict=True):
        middle = y + 0.5 * step
        colour = UNMATCHED if part is None else colour_of_part(part, colours)
        if part is not None:
            badge(canvas, (left + 0.8 * em, middle), part, 0.7 * em, colours, style, f"row-{row.rank}-{part}")
        text = canvas.text(left + 2.2 * em + column, middle, number, size=style.text, weight="bold", ha="right")
        text.set_gid(f"share-{row.rank}-{part or 'rest'}")
        for fill, length in (("#E9EDF1", 1.0), (colour, min(1.0, max(0.0, share or 0.0)))):
            place_ = (bar_left, middle - 0.3 * em)
            canvas.sheet.add_patch(Rectangle(place_, length * bar, 0.6 * em, facecolor=fill, edgecolor="none"))
        x = bar_left + bar + 0.8 * em
        canvas.text(x, middle, words, size=style.small, color=QUIET, space=style.right - x)
        y += step


def _where(part: Mapping[str, Any]) -> str:
    return f"{part['place_q']} \N{LEFT RIGHT ARROW} {part['place_g']}" if part["place_q"] or part["place_g"] else ""


def _draw_list(canvas: Canvas, style: Style, row: _Row, colours: Sequence[str], place: tuple[float, float]) -> None:
    """The drawn flows in columns as wide as their longest number; without the factors where they do not fit."""
    em, (left, y), ledger = style.em, place, row.ledger
    step, right = 1.75 * em, style.right
    text = f"{share_text(ledger, row.flows)}."
    size = canvas.fitting_size([text], style.text, right - left)
    canvas.text(left, y + 0.5 * step, text, size=size, color=QUIET, space=right - left)
    if not row.flows:
        return
    digits = decimals(row.flows[0].contribution)
    cells = [
        f"{cell_name(flow.region_q, ledger.grid_q)} → {cell_name(flow.region_g, ledger.grid_g)}" for flow in row.flows
    ]
    products = [f"mass {flow.mass:.{digits}f} {TIMES} cosine {flow.cosine:.3f}" for flow in row.flows]
    values = [signed(flow.contribution, digits) for flow in row.flows]
    first, second, third = (
        max(text_width(entry, style.text, weight) for entry in column)
        for column, weight in ((cells, "normal"), (products, "normal"), (values, "bold"))
    )
    names = left + 2.4 * em
    factors = names + first + 1.2 * em
    shown = factors + second + 1.2 * em + third <= right
    for rank in range(len(row.flows)):
        y += step
        colour = colour_of(rank, colours)
        chip = {"boxstyle": "round,pad=0.2,rounding_size=0.3", "facecolor": colour, "edgecolor": "none"}
        how: dict[str, Any] = {"color": ink_on(colour), "weight": "bold", "ha": "center", "bbox": chip}
        middle = y + 0.5 * step
        canvas.text(left + 0.9 * em, middle, str(rank + 1), size=style.small, **how)
        canvas.text(names, middle, cells[rank], size=style.text, color=INK)
        if shown:
            canvas.text(factors, middle, products[rank], size=style.text, color=QUIET)
        value = canvas.text(right, middle, values[rank], size=style.text, ha="right", weight="bold")
        value.set_gid(f"contribution-{rank}")
