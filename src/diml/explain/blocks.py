"""Figures as blocks below each other, for any width: a column of a paper, a page, a slide.

Legend: pixels are 1/100 inch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.patches import FancyBboxPatch

from diml.explain.canvas import ALARM, INK, PIXELS_PER_INCH, Canvas, line_height, wrapped

COLUMN: Final = 3.3  # inches: one column of a paper
PAGE: Final = 6.9  # both columns
SLIDE: Final = 12.0
_WIDTHS: Final = (2.5, 24.0)
_DPI: Final = 200


@dataclass(frozen=True)
class Style:
    """Sizes that depend on the width of a figure.

    Args:
        width: of the figure in pixels.
        text: font size of ordinary text in points.
    """

    width: float
    text: float

    @classmethod
    def of(cls, width: float | None, *, dense: bool = False) -> Style:
        """The style of a figure `width` inches wide; 6.9, or 12 of a dense one, where omitted.

        Letters have 7 points in a column of a paper and grow with the width, slower in a dense figure.

        Raises:
            ValueError: the width is out of range.
        """
        full, sizes = (SLIDE, (7.0, 8.0, 9.5)) if dense else (PAGE, (7.0, 10.0, 10.0 * SLIDE / PAGE))
        inches = full if width is None else width
        if not _WIDTHS[0] <= inches <= _WIDTHS[1]:
            raise ValueError(f"width: need {_WIDTHS[0]:g} to {_WIDTHS[1]:g} inches, got {inches:g}")
        size = float(np.interp(inches, (COLUMN, PAGE, SLIDE), sizes)) * max(1.0, inches / SLIDE)
        return cls(inches * PIXELS_PER_INCH, size)

    @property
    def narrow(self) -> bool:
        """Whether there is space for one column only."""
        return self.width < 4.6 * PIXELS_PER_INCH

    @property
    def small(self) -> float:
        """Font size of what is less important, in points; at least 6."""
        return max(6.0, 0.87 * self.text)

    @property
    def em(self) -> float:
        """Height of ordinary text in pixels, the unit of distances."""
        return self.text * PIXELS_PER_INCH / 72

    @property
    def margin(self) -> float:
        """Left and right of the figure."""
        return 0.9 * self.em if self.narrow else 1.5 * self.em

    @property
    def right(self) -> float:
        """The right end of what is drawn."""
        return self.width - self.margin

    @property
    def space(self) -> float:
        """Width of what is drawn."""
        return self.width - 2 * self.margin


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a figure over its whole width.

    Args:
        height: in pixels.
        draw: draws it on a canvas, from a vertical position in pixels.
        gap: above it, in pixels; not above the first block.
    """

    height: float
    draw: Callable[[Canvas, float], None]
    gap: float = 0.0


def stacked(style: Style, blocks: Sequence[Block], dpi: float = _DPI) -> Canvas:
    """Draw blocks below each other on a canvas that is as high as they are."""
    edge = style.margin
    height = 2 * edge + sum(block.height + (block.gap if number else 0.0) for number, block in enumerate(blocks))
    canvas = Canvas(style.width, max(height, 2 * edge + style.em), dpi=dpi)
    top = edge
    for number, block in enumerate(blocks):
        top += block.gap if number else 0.0
        block.draw(canvas, top)
        top += block.height
    return canvas


def check_panels(panels: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The chosen panels, or all of them; ValueError where one is unknown or none is chosen."""
    if panels is None:
        return known
    unknown = [name for name in panels if name not in known]
    if unknown or not panels:
        raise ValueError(f"panels: need some of {', '.join(known)}, got {', '.join(unknown) or 'none'}")
    return tuple(panels)


@dataclass(frozen=True, eq=False)
class Item:
    """A part of a figure that shares a row with others.

    Args:
        least: width in pixels that it needs.
        height: in pixels, for a width in pixels.
        draw: draws it on a canvas at (left, top) with a width.
        grows: whether it takes the rest of its row.
    """

    least: float
    height: Callable[[float], float]
    draw: Callable[[Canvas, float, float, float], None]
    grows: bool = False


def in_rows(style: Style, items: Sequence[Item], columns: int, *, space: float, gap: float) -> list[Block]:
    """Items in rows of equal columns; an item that needs more takes several.

    Args:
        style: of the figure.
        items: in their order.
        columns: of a row.
        space: between the columns, in pixels.
        gap: above each row, in pixels.
    """
    column = (style.space - (columns - 1) * space) / columns
    rows: list[list[tuple[Item, int]]] = []
    free = 0
    for item in items:
        span = min(columns, max(1, math.ceil((item.least + space) / (column + space) - 1e-6)))
        if span > free:
            rows.append([])
            free = columns
        rows[-1].append((item, span))
        free -= span
    return [_row(style, row, columns, column, space, gap) for row in rows]


def _row(style: Style, row: Sequence[tuple[Item, int]], columns: int, column: float, space: float, gap: float) -> Block:
    free = columns - sum(span for _, span in row)
    spans = [span + (free if item.grows and number == len(row) - 1 else 0) for number, (item, span) in enumerate(row)]
    widths = [span * column + (span - 1) * space for span in spans]

    def draw(canvas: Canvas, top: float) -> None:
        left = style.margin
        for (item, _), width in zip(row, widths, strict=True):
            item.draw(canvas, left, top, width)
            left += width + space

    return Block(max(item.height(width) for (item, _), width in zip(row, widths, strict=True)), draw, gap)


def paragraph(style: Style, text: str, size: float, *, gap: float, gid: str, **how: Any) -> Block:
    """Text over the whole width, in as many lines as it needs."""
    lines = wrapped(text, size, style.space, str(how.get("weight", "normal")))
    step = line_height(size)

    def draw(canvas: Canvas, top: float) -> None:
        for number, line in enumerate(lines):
            canvas.text(style.margin, top + (number + 0.5) * step, line, size=size, **how).set_gid(f"{gid}-{number}")

    return Block(step * len(lines), draw, gap)


def warning(style: Style, text: str, *, gap: float, gid: str) -> Block:
    """A warning over the whole width, on a ground of its own."""
    size, pad = style.text, 0.45 * style.em
    indent = 2.0 * style.em
    lines = wrapped(text, size, style.space - indent - pad)
    step = line_height(size)
    height = step * len(lines) + 2 * pad

    def draw(canvas: Canvas, top: float) -> None:
        box = FancyBboxPatch(
            (style.margin, top), style.space, height, boxstyle=f"round,pad=0,rounding_size={0.3 * style.em}"
        )
        box.set(facecolor="#FFF1E5", edgecolor="#F3B98A", linewidth=0.8)
        canvas.sheet.add_patch(box)
        canvas.text(style.margin + pad, top + height / 2, "\N{WARNING SIGN}", size=1.2 * size, color=ALARM)
        for number, line in enumerate(lines):
            place = top + pad + (number + 0.5) * step
            canvas.text(style.margin + indent, place, line, size=size, color=INK).set_gid(f"{gid}-{number}")

    return Block(height, draw, gap)
