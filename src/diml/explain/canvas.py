"""A matplotlib figure measured in pixels, on which explanations are laid out.

Pixels are 1/100 inch and count from the top left. Only matplotlib's objects are used, never pyplot: no display, no
global state, safe in threads. Figures saved as PDF, PostScript or SVG keep their text as text.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from diml.files import atomic_file

PIXELS_PER_INCH: Final = 100
FONT: Final = "DejaVu Sans"  # comes with matplotlib, so that the layout is the same on every machine
FAMILY: Final = [FONT, "sans-serif"]  # what an SVG falls back to where that font is not installed
SMALLEST: Final = 6.0  # points: what journals accept
_MEASURED_AT: Final = (100, 200, 800)  # dots per inch

INK: Final = "#1f2328"
QUIET: Final = "#59636e"
FAINT: Final = "#d1d9e0"
ALARM: Final = "#b04300"

#: Distinguishable by colour-blind readers (Okabe and Ito 2008), the clearest on photos first; the ninth is the first.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")

#: Of parts 1 to 6, the same as in `page/numbers.js`.
PARTS_PALETTE: Final = PALETTE[:6]

#: Of what has no counterpart.
UNMATCHED: Final = "#8A8F98"

#: How vector formats keep text as text: TrueType fonts in PDF and PostScript (never Type 3), letters in SVG.
VECTOR_TEXT: Final = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}
VECTOR_FORMATS: Final = frozenset({"pdf", "ps", "eps", "svg", "svgz"})
_VECTOR_DPI: Final = 300  # of the photos in vector formats
_settings_lock = threading.Lock()


class TextFigure(Figure):
    """A figure whose text stays text in PDF, PostScript and SVG, however it is saved."""

    def savefig(self, fname: Any, **how: Any) -> None:
        """As `Figure.savefig`; photos in vector formats have 300 dpi unless `dpi` is given."""
        ending = how.get("format") or (PurePath(fname).suffix if isinstance(fname, str | os.PathLike) else "")
        if ending.lower().lstrip(".") not in VECTOR_FORMATS:
            super().savefig(fname, **how)
            return
        with _vector_text():
            super().savefig(fname, **{"dpi": _VECTOR_DPI, **how})


@contextmanager
def _vector_text() -> Iterator[None]:
    """Matplotlib reads these settings from its global ones only: they are set while one figure is being saved."""
    with _settings_lock:
        settings: MutableMapping[Any, Any] = matplotlib.rcParams
        before = {name: settings[name] for name in VECTOR_TEXT}
        settings.update(VECTOR_TEXT)
        try:
            yield
        finally:
            settings.update(before)


class Canvas:
    """A matplotlib figure with transparent axes over all of it for text and lines.

    Args:
        width: pixels.
        height: pixels.
        dpi: dots per inch of the figure when it is saved as pixels; positions stay in 1/100 inch.
    """

    def __init__(self, width: float, height: float, *, dpi: float = PIXELS_PER_INCH) -> None:
        self.width, self.height = width, height
        size = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
        self.figure = TextFigure(figsize=size, dpi=dpi, facecolor="white")
        FigureCanvasAgg(self.figure)
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
        return self.sheet.text(x, y, text, fontsize=size, fontfamily=FAMILY, parse_math=False, **settings)

    def text_width(self, text: str, size: float, weight: str = "normal") -> float:
        """Width of a text in pixels."""
        return text_width(text, size, weight)

    def fitting_size(self, texts: Sequence[str], size: float, space: float, *, gap: float = 0.0) -> float:
        """The largest font size from `size` down to 6 at which bold texts side by side fit into `space` pixels."""
        while size > SMALLEST and sum(self.text_width(text, size, "bold") + gap for text in texts) > space:
            size -= 0.5
        return max(size, SMALLEST)

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


@lru_cache(4096)
def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width of a text in pixels; at low resolutions hinting makes it wider than at high ones, and the widest counts."""
    font = FontProperties(family=FONT, size=size, weight=weight)
    widths = (
        _ruler(dpi).get_text_width_height_descent(text, font, ismath=False)[0] * PIXELS_PER_INCH / dpi
        for dpi in _MEASURED_AT
    )
    return float(max(widths))


@cache
def _ruler(dpi: int) -> Any:
    agg: Any = RendererAgg
    return agg(1, 1, dpi)


def line_height(size: float) -> float:
    """Distance of the lines of a paragraph in pixels."""
    return size * PIXELS_PER_INCH / 72 * 1.38


def wrapped(text: str, size: float, space: float, weight: str = "normal") -> list[str]:
    """The lines of a paragraph that is `space` pixels wide; a word that is wider is divided."""
    lines: list[str] = []
    for word in displayable(text).split():
        if lines and text_width(f"{lines[-1]} {word}", size, weight) <= space:
            lines[-1] += f" {word}"
            continue
        while len(word) > 1 and text_width(word, size, weight) > space:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or text_width(word[:n], size, weight) <= space)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise ValueError where the ending of a file name is no format that figures are saved in."""
    ending = PurePath(path).suffix.lower().lstrip(".")
    known = FigureCanvasAgg.filetypes
    if ending not in known:
        raise ValueError(
            f"output: need a file name ending in one of {', '.join(sorted(known))}; got {os.fspath(path)!r}"
        )


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Save a figure at its own resolution, atomically; missing folders are created.

    PDF and PostScript have embedded TrueType fonts, SVG has its text as text.

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
        kind = PurePath(path).suffix.lower().lstrip(".")
        if kind in VECTOR_FORMATS:
            with _vector_text():
                Figure.savefig(figure, temporary, dpi=_VECTOR_DPI, format=kind)
        else:
            figure.savefig(temporary, dpi=figure.dpi, format=kind)
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
