"""A matplotlib figure measured in pixels, on which explanations are laid out.

Pixels are 1/100 inch and count from the top left. Only matplotlib's objects are used, never pyplot: no display, no
global state, safe in threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from diml.files import atomic_file

PIXELS_PER_INCH: Final = 100
FONT: Final = "DejaVu Sans"  # comes with matplotlib, so that the layout is the same on every machine

INK: Final = "#1f2328"
QUIET: Final = "#59636e"
FAINT: Final = "#d1d9e0"
ALARM: Final = "#b04300"

#: Distinguishable by colour-blind readers (Okabe and Ito 2008), the clearest on photos first; the ninth is the first.
PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#000000")


class Canvas:
    """A matplotlib figure with transparent axes over all of it for text and lines.

    Args:
        width: pixels.
        height: pixels.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        size = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
        self.figure = Figure(figsize=size, dpi=PIXELS_PER_INCH, facecolor="white")
        agg: Any = FigureCanvasAgg(self.figure)
        self._renderer = agg.get_renderer()
        self.sheet = self.axes(0, 0, width, height)
        self.sheet.set(xlim=(0, width), ylim=(height, 0), zorder=10)
        self.sheet.set_axis_off()

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a position in pixels."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(self, x: float, y: float, text: str, *, size: float = 9.5, space: float | None = None, **how: Any) -> Text:
        """Write at a position in pixels; text wider than `space` pixels loses its beginning.

        Keyword arguments are those of `Axes.text`. Dollar signs are plain text; characters without a glyph become `?`.
        """
        text = displayable(text)
        if space is not None:
            text = self.cut(text, size, space, str(how.get("weight", "normal")))
        settings: dict[str, Any] = {"color": INK, "va": "center", "ha": "left", **how}
        return self.sheet.text(x, y, text, fontsize=size, fontfamily=FONT, parse_math=False, **settings)

    def text_width(self, text: str, size: float, weight: str = "normal") -> float:
        """Width of a text in pixels."""
        font = FontProperties(family=FONT, size=size, weight=weight)
        width, _, _ = self._renderer.get_text_width_height_descent(text, font, ismath=False)
        return float(width)

    def fitting_size(self, texts: Sequence[str], size: float, space: float, *, gap: float = 0.0) -> float:
        """The largest font size from `size` down to 8 at which bold texts side by side fit into `space` pixels."""
        while size > 8 and sum(self.text_width(text, size, "bold") + gap for text in texts) > space:
            size -= 0.5
        return size

    def cut(self, text: str, size: float, space: float, weight: str = "normal") -> str:
        """The text, or as much of its end (the informative part of a path) as fits into `space` pixels."""
        if self.text_width(text, size, weight) <= space:
            return text
        low, high = 0, len(text)  # the smallest number of characters to drop
        while low < high:
            middle = (low + high) // 2
            if self.text_width("…" + text[middle:], size, weight) <= space:
                high = middle
            else:
                low = middle + 1
        at_folder = text.find("/", low)
        return "…" + text[low if at_folder < 0 else at_folder :]


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise ValueError where the ending of a file name is no format that figures are saved in."""
    ending = PurePath(path).suffix.lower().lstrip(".")
    known = FigureCanvasAgg.filetypes
    if ending not in known:
        raise ValueError(
            f"output: need a file name ending in one of {', '.join(sorted(known))}; got {os.fspath(path)!r}"
        )


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Save a figure at its own resolution (1200 px wide), atomically; missing folders are created.

    Args:
        figure: as of `draw_match` or `hits_figure`.
        path: its ending determines the format: png, pdf, svg, jpg and others.

    Returns:
        The path.

    Raises:
        ValueError: the ending is no known format.
        OSError: the folder cannot be written to.
    """
    check_format(path)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=PIXELS_PER_INCH, format=PurePath(path).suffix.lower().lstrip("."))
    return Path(path)


def ink_on(colour: str) -> str:
    """Black or white, whichever is more legible on a colour `#rrggbb`."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.2 else "#ffffff"


def displayable(text: str) -> str:
    """The text in one line, with `?` for each character without a glyph in the font."""
    return "".join(sign if _has_glyph(sign) else "?" for sign in " ".join(text.split()))


@cache
def _has_glyph(sign: str) -> bool:
    font = get_font(findfont(FontProperties(family=FONT)))
    return font.get_char_index(ord(sign)) != 0
