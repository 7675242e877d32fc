"""The figure of a pair for everybody: both images with the parts that match, their shares, and how sure that is.

It is drawn from `Summary.to_dict()` and from nothing else, as are the page and the JSON.

Legend: R regions of a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diml.explain.blocks import Block, Style, check_panels, paragraph, stacked, warning
from diml.explain.canvas import INK, PARTS_PALETTE, QUIET, UNMATCHED, Canvas, text_width
from diml.explain.formatting import signed
from diml.explain.outlines import draw_outline, draw_veil, outline_path
from diml.explain.panels import Panel, Side, section_of
from diml.explain.part_marks import Row, badge, check_colours, colour_of_part, outline_parts, regions_of, tint
from diml.explain.scale_figure import draw_scale, scale_height, scale_title
from diml.explain.wording import whole_percent

PartsPanel = Literal["headline", "images", "parts", "background", "scale"]

_TRACK: Final = "#E9EDF1"
_BACKGROUND: Final = (
    ("object", "#3F4B57", "object"),
    ("mixed", "#9AA5B1", "both"),
    ("background", "#DDE2E7", "background"),
)


def draw_parts(
    summary: Mapping[str, Any],
    sides: tuple[Side, Side],
    *,
    overlay: bool = False,
    colours: Sequence[str] = PARTS_PALETTE,
    width: float | None = None,
    panels: Sequence[str] | None = None,
) -> Figure:
    """Draw which parts of two images match, how much of the similarity each carries, and how sure that is.

    Args:
        summary: `Summary.to_dict()`; everything that is written comes from it.
        sides: query and gallery image, as of `sides_of`.
        overlay: also tint the parts in their colours; the images are left as they are otherwise.
        colours: `#rrggbb` of parts 1, 2, ...; they repeat where there are more parts, which are numbered as well.
        width: in inches, 2.5 to 24: 3.3 and 6.9 (the default) are the columns of papers. Letters have at
            least 6 points.
        panels: any of "headline", "images", "parts", "background" and "scale", in this order below each other; all of
            them where omitted. Warnings belong to the headline.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: the width is out of range, a panel is unknown, or there are no colours.
    """
    style = Style.of(width)
    shown = check_panels(panels, get_args(PartsPanel))
    check_colours(colours)
    blocks: list[Block] = []
    if "headline" in shown:
        blocks += _headline(summary, style)
    if "images" in shown:
        blocks.append(_images(summary, sides, style, colours, overlay))
    if "parts" in shown:
        blocks += _rows(summary, sides, style, colours)
    if "background" in shown and summary["background"] is not None:
        blocks.append(_background(summary["background"], style))
    if "scale" in shown:
        blocks += _scale(summary, style)
    return stacked(style, blocks).figure


def _headline(summary: Mapping[str, Any], style: Style) -> list[Block]:
    """What it is likely to be, one sentence, and warnings."""
    size = 1.75 * style.text
    em = style.em
    blocks = [
        paragraph(style, summary["headline"], size, gap=0, gid="headline", weight="bold"),
        paragraph(style, summary["sentence"], style.text, gap=0.25 * em, gid="sentence"),
    ]
    return blocks + [
        warning(style, text, gap=0.7 * em if number == 0 else 0.4 * em, gid=f"warning-{number}")
        for number, text in enumerate(summary["warnings"])
    ]


def _images(
    summary: Mapping[str, Any], sides: tuple[Side, Side], style: Style, colours: Sequence[str], overlay: bool
) -> Block:
    """Both images side by side, equally high where that fits, with the outlines of the parts."""
    gap = 1.0 * style.em
    caption = 1.5 * style.em
    wide = style.space - gap
    aspects = [side.aspect for side in sides]
    most = 0.62 * style.space  # of the height: strips do not fill a page
    height = min(wide / sum(aspects), most)
    widths = [aspect * height for aspect in aspects]
    least = 0.22 * wide  # a caption has space
    if min(widths) < least:
        narrowest = widths.index(min(widths))
        widths[narrowest] = least
        widths[1 - narrowest] = min(widths[1 - narrowest], wide - least)
    unmatched = summary["unmatched"]
    keyed = unmatched is not None and any(unmatched[side.role]["regions"] for side in sides)
    used = sum(widths) + gap
    below = 1.5 * style.em if keyed else 0.0

    def draw(canvas: Canvas, top: float) -> None:
        left = style.margin + max(0.0, (style.space - used) / 2)
        for side, space in zip(sides, widths, strict=True):
            _caption(canvas, side, left, top + 0.5 * caption, space, style)
            panel = Panel.fit(side, left, top + caption, space, height)
            grey = unmatched[side.role]["regions"] if unmatched is not None else ()
            axes = panel.draw_image(canvas, f"panel-{side.role}", grey=grey)
            rows = [row for row in summary["parts"] if regions_of(row, side)]
            if overlay or side.image is None or side.grid is None:
                tint(axes, side, rows, colours)
            outline_parts(canvas, panel, rows, colours, style)
            left += space + gap
        if keyed:
            _key(canvas, style, top + caption + height + 0.9 * style.em)

    return Block(caption + height + below, draw, 0.9 * style.em)


def _caption(canvas: Canvas, side: Side, left: float, y: float, space: float, style: Style) -> None:
    role = "Query" if side.role == "query" else "Gallery"
    canvas.text(left, y, role, size=style.text, weight="bold", space=space).set_gid(f"caption-{side.role}")
    used = text_width(role, style.text, "bold") + 0.6 * style.em
    if side.name not in ("", side.role) and space - used > 2 * style.em:  # one without a name is called by its role
        canvas.text(left + used, y, side.name, size=style.small, color=QUIET, space=space - used)


def _key(canvas: Canvas, style: Style, y: float) -> None:
    """What the grey regions are."""
    em = style.em
    chip = Rectangle((style.margin, y - 0.45 * em), 1.5 * em, 0.9 * em, facecolor="#EEF0F2", edgecolor=UNMATCHED)
    chip.set(hatch="/////", linewidth=0.6)
    canvas.sheet.add_patch(chip)
    canvas.text(style.margin + 2.0 * em, y, "no counterpart in the other image", size=style.small, color=QUIET)


def _rows(summary: Mapping[str, Any], sides: tuple[Side, Side], style: Style, colours: Sequence[str]) -> list[Block]:
    """A row for each part, for all other pairs of regions, and for the pooled cosine where it is not divided."""
    blocks = [
        _part_row(row, sides, style, colours, gap=(1.1 if number == 0 else 0.55) * style.em)
        for number, row in enumerate(summary["parts"])
    ]
    others = "other pairs of regions"
    rest = [("between", "overall look", f"all {others}") if summary["overall"] else ("between", others, "")]
    if summary["pooled"] is not None:
        rest.append(("pooled", "the images as a whole", summary["undivided"]))
    for name, text, reason in rest:
        gap = (1.1 if style.narrow else 0.7) * style.em
        blocks.append(_rest_row(summary[name], name, text, reason, style, gap))
    return blocks


def _thumb_size(style: Style) -> tuple[float, float]:
    return (5.4 * style.em, 4.6 * style.em) if style.narrow else (6.2 * style.em, 4.6 * style.em)


def _text_left(style: Style) -> float:
    """Where the text of a row begins: right of number and thumbnails."""
    return style.margin + 2.0 * style.em + 2 * _thumb_size(style)[0] + 1.6 * style.em + 0.9 * style.em


def _share_text(value: float, share: float | None) -> tuple[str, str]:
    """A share of the similarity in whole percent; where that would mislead, the value."""
    if share is None:
        return signed(value), "of the similarity"
    return whole_percent(share), "of the similarity"


def _part_row(row: Row, sides: tuple[Side, Side], style: Style, colours: Sequence[str], gap: float) -> Block:
    """`1  [query part] ↔ [gallery part]  31 % of the similarity  ▇▇▇`."""
    em, (wide, high) = style.em, _thumb_size(style)
    colour = colour_of_part(row["part"], colours)

    def draw(canvas: Canvas, top: float) -> None:
        left, middle = style.margin, top + high / 2
        badge(canvas, (left + 0.8 * em, middle), row["part"], 0.8 * em, colours, style, f"row-{row['part']}")
        left += 2.0 * em
        for side in sides:
            _thumb(canvas, side, row, (left, top, wide, high), colour, style)
            left += wide + 1.6 * em
        arrow = style.margin + 2.0 * em + wide + 0.8 * em
        canvas.text(arrow, middle, "\N{LEFT RIGHT ARROW}", size=style.text, color=QUIET, ha="center")
        places = _places(row)
        _share_row(canvas, row["value"], row["share"], "", places, colour, style, middle, f"part-{row['part']}")

    return Block(high, draw, gap)


def _places(row: Row) -> str:
    places = f"{row['place_q']} \N{LEFT RIGHT ARROW} {row['place_g']}" if row["place_q"] or row["place_g"] else ""
    apart = not (row["connected_q"] and row["connected_g"])
    return places + (" (in pieces)" if apart and places else "")


def _rest_row(term: Row, name: str, text: str, reason: str, style: Style, gap: float) -> Block:
    """`39 % overall look  ▇▇▇`, without images."""
    height = (2.9 if style.narrow else 1.9 + (1.2 if reason else 0.0)) * style.em

    def draw(canvas: Canvas, top: float) -> None:
        middle = top + height / 2
        _share_row(canvas, term["value"], term["share"], text, reason, UNMATCHED, style, middle, name)

    return Block(height, draw, gap)


def _share_row(
    canvas: Canvas,
    value: float,
    share: float | None,
    text: str,
    detail: str,
    colour: str,
    style: Style,
    middle: float,
    gid: str,
) -> None:
    """A share in words with its bar, which is as long as its fraction of the track."""
    em = style.em
    left, right = _text_left(style), style.right
    number, words = _share_text(value, share)
    words = text or words
    size = 1.25 * style.text
    if style.narrow:  # the bar below the words
        split, bar_left, bar_y, text_y, detail_y = right, left, middle, middle - 1.15 * em, middle + 1.15 * em
    else:  # beside them
        split, text_y = left + 15.0 * em, middle - (0.62 * em if detail else 0.0)
        bar_left, bar_y, detail_y = split + 1.0 * em, text_y + 0.08 * em, middle + 0.8 * em
    canvas.text(left, text_y, number, size=size, weight="bold").set_gid(f"share-{gid}")
    used = text_width(number, size, "bold") + 0.45 * em
    canvas.text(left + used, text_y + 0.08 * em, words, size=style.text, color=INK, space=split - left - used)
    if detail:
        canvas.text(left, detail_y, detail, size=style.small, color=QUIET, space=split - left)
    height = 0.75 * em
    for name, length, fill in (("track", 1.0, _TRACK), ("bar", min(1.0, max(0.0, share or 0.0)), colour)):
        if length > 0 and share is not None:
            bar = Rectangle((bar_left, bar_y - height / 2), length * (right - bar_left), height)
            bar.set(facecolor=fill, edgecolor="none", gid=f"{name}-{gid}")
            canvas.sheet.add_patch(bar)


def _thumb(
    canvas: Canvas, side: Side, row: Row, place: tuple[float, float, float, float], colour: str, style: Style
) -> None:
    """The part of one image, everything around it faded."""
    regions = regions_of(row, side)
    if not regions:
        return
    across = 1.0 if side.role == "query" else 0.0  # both next to the arrow
    panel = Panel.fit(side, *place, section=section_of(side, regions), across=across)
    axes = panel.draw_image(canvas, f"thumb-{side.role}-{row['part']}")
    if side.image is None or side.grid is None:
        tint(axes, side, [row], [colour])
    line = max(0.8, 0.11 * style.text)
    path = outline_path(panel, regions, line)
    draw_veil(canvas, panel, path)
    draw_outline(canvas, path, colour, line, f"thumb-outline-{side.role}-{row['part']}")


def _background(shares: Mapping[str, float], style: Style) -> Block:
    """Where the similarity comes from: object, both, background."""
    em = style.em
    height = 3.2 * em

    def draw(canvas: Canvas, top: float) -> None:
        canvas.text(style.margin, top + 0.6 * em, "Where the similarity comes from", size=style.text, weight="bold")
        total = sum(max(0.0, shares[name]) for name, _, _ in _BACKGROUND) or 1.0
        left = style.margin
        for name, colour, _ in _BACKGROUND:
            wide = style.space * max(0.0, shares[name]) / total
            bar = Rectangle((left, top + 1.35 * em), wide, 0.7 * em, facecolor=colour, edgecolor="white", linewidth=0.5)
            bar.set_gid(f"background-{name}")
            canvas.sheet.add_patch(bar)
            left += wide
        x, y = style.margin, top + 2.75 * em
        for name, colour, word in _BACKGROUND:
            text = f"{word} {whole_percent(shares[name])}"
            canvas.sheet.add_patch(
                Rectangle((x, y - 0.35 * em), 0.7 * em, 0.7 * em, facecolor=colour, edgecolor="none")
            )
            canvas.text(x + em, y, text, size=style.small, color=QUIET).set_gid(f"background-text-{name}")
            x += text_width(text, style.small) + 2.4 * em

    return Block(height, draw, 1.2 * em)


def _scale(summary: Mapping[str, Any], style: Style) -> list[Block]:
    """The score on the common scale, and which plan the parts come from."""
    size, em = style.small, style.em

    def draw(canvas: Canvas, top: float) -> None:
        canvas.text(style.margin, top + 0.6 * em, scale_title(summary), size=style.text, weight="bold")
        draw_scale(canvas, summary, style.margin, top + 1.5 * em, style.space, size)

    plan = f"Parts sum to {signed(summary['score'])} ({summary['plan']} plan)"
    if summary["ranked_by"] is not None:
        plan += f"; the pair is ranked by {signed(summary['ranked_by'])}"
    return [
        Block(1.5 * em + scale_height(summary, size), draw, 1.4 * em),
        paragraph(style, plan + ".", max(6.0, 0.8 * style.text), gap=0.2 * em, gid="plan", color=QUIET),
    ]
