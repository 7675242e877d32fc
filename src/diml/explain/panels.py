"""One side of a match on a canvas: its image, the weights of its regions as a heat map, and the names of the cells.

Legend: R regions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle
from PIL import Image

from diml.explain.canvas import FAINT, INK, QUIET, UNMATCHED, Canvas
from diml.matching import Match
from diml.matching.cell_names import Grid, cell_name, column_letters

Array = np.ndarray[Any, np.dtype[np.float64]]

#: (left, top, right, bottom) in cells.
Section = tuple[float, float, float, float]

_TILE: Final = "#E9EDF1"

#: Weights relative to the uniform one, 1 / R: less is shaded blue, more is tinted orange, 1 leaves the photo as it is.
HEAT: Final = LinearSegmentedColormap.from_list(
    "diml.heat",
    [
        (0.0, (0.04, 0.05, 0.25, 0.74)),
        (0.25, (0.10, 0.20, 0.45, 0.44)),
        (0.5, (1.0, 1.0, 1.0, 0.0)),
        (0.75, (1.0, 0.60, 0.10, 0.40)),
        (1.0, (1.0, 0.45, 0.0, 0.66)),
    ],
)

#: Of weights times R: the same for every pair, so that two figures can be compared.
HEAT_SCALE: Final = Normalize(0.0, 2.0, clip=True)


@dataclass(frozen=True, eq=False)
class Side:
    """One image of a pair.

    Args:
        role: "query" or "gallery".
        name: of the image, may be empty.
        weights: (R,) share of the mass of each region, summing to 1.
        grid: (rows, columns) of the regions, or None.
        image: RGB, exactly what the regions cover, or None.
    """

    role: str
    name: str
    weights: Array
    grid: Grid | None
    image: Image.Image | None

    @property
    def layout(self) -> Grid:
        """(rows, columns) as drawn: the grid, or for regions without one the squarest layout, in their order."""
        if self.grid is not None:
            return self.grid
        columns = math.ceil(math.sqrt(len(self.weights)))
        return math.ceil(len(self.weights) / columns), columns

    @property
    def aspect(self) -> float:
        """Width / height of the image where there is one and its cells are known, else of a layout of square cells."""
        if self.image is not None and self.grid is not None:
            return self.image.width / self.image.height
        rows, columns = self.layout
        return columns / rows


def sides_of(
    match: Match,
    pair: int,
    images: tuple[Image.Image, Image.Image] | None,
    names: tuple[str, str] | None,
) -> tuple[Side, Side]:
    """The two sides of one pair of a match, numbers as float64 on the CPU."""
    if not -len(match) <= pair < len(match):
        raise IndexError(f"pair: need -{len(match)}..{len(match) - 1}, got {pair}")
    for what, given in (("images", images), ("names", names)):
        if given is not None and len(given) != 2:
            raise ValueError(f"{what}: need two, of the query and of the gallery image; got {len(given)}")
    images_, names_ = images or (None, None), names or ("", "")
    weights = [w[pair].detach().double().cpu().numpy() for w in (match.weight_q, match.weight_g)]
    return (
        Side("query", names_[0], weights[0], match.grid_q, images_[0]),
        Side("gallery", names_[1], weights[1], match.grid_g, images_[1]),
    )


@dataclass(frozen=True, eq=False)
class Panel:
    """The rectangle on the canvas, in pixels from the top left, where a side or a section of it is shown.

    Args:
        side: that is shown.
        left, top, width, height: of the rectangle.
        section: (left, top, right, bottom) of what is shown, in cells; None shows all of it.
    """

    side: Side
    left: float
    top: float
    width: float
    height: float
    section: Section | None = None

    @classmethod
    def fit(
        cls,
        side: Side,
        left: float,
        top: float,
        width: float,
        height: float,
        section: Section | None = None,
        *,
        across: float = 0.5,
    ) -> Panel:
        """The largest panel with the aspect ratio of what is shown in a box.

        Args:
            side, section: as of `Panel`.
            left, top, width, height: of the box.
            across: where the panel is in a wider box: 0 at its left, 0.5 in the middle, 1 at its right.
        """
        aspect = aspect_of(side, section)
        wide, high = (width, width / aspect) if aspect * height > width else (aspect * height, height)
        least = min(24.0, width, height)
        wide, high = max(wide, least), max(high, least)  # a strip of 1 x 100 cells stays visible
        return cls(side, left + across * (width - wide), top + (height - high) / 2, wide, high, section)

    @property
    def shown(self) -> Section:
        """(left, top, right, bottom) of what is shown, in cells."""
        rows, columns = self.side.layout
        return self.section or (0.0, 0.0, float(columns), float(rows))

    @property
    def cell_size(self) -> tuple[float, float]:
        """(width, height) of a cell in pixels."""
        left, top, right, bottom = self.shown
        return self.width / (right - left), self.height / (bottom - top)

    @property
    def origin(self) -> tuple[float, float]:
        """(left, top) of the first cell in pixels, which may not be shown."""
        (wide, high), (left, top, _, _) = self.cell_size, self.shown
        return self.left - left * wide, self.top - top * high

    def cell(self, region: int) -> tuple[float, float]:
        """(left, top) of a region's cell in pixels."""
        row, column = divmod(region, self.side.layout[1])
        (x, y), (wide, high) = self.origin, self.cell_size
        return x + column * wide, y + row * high

    def draw_image(self, canvas: Canvas, gid: str, *, grey: Sequence[int] = ()) -> Axes:
        """Draw what is shown of the image, or blank tiles where there is none.

        Args:
            canvas: to draw on.
            gid: of the axes.
            grey: regions that are drawn without colour, light and hatched.

        Returns:
            Axes whose coordinates are cells.
        """
        axes = canvas.axes(self.left, self.top, self.width, self.height)
        axes.set_gid(gid)
        left, top, right, bottom = self.shown
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], facecolor=_TILE)
        for spine in axes.spines.values():
            spine.set(edgecolor=FAINT, linewidth=0.6)
        if self.side.image is not None and self.side.grid is not None:
            image, place = self._cut(self.side.image.convert("RGB"))
            axes.imshow(image, extent=place, aspect="auto", interpolation="antialiased", zorder=0)
            axes.set(xlim=(left, right), ylim=(bottom, top))
        else:
            rows, columns = self.side.layout
            axes.vlines(range(1, columns), 0, rows, colors="white", linewidths=0.8)
            axes.hlines(range(1, rows), 0, columns, colors="white", linewidths=0.8)
        if grey:
            self._draw_grey(axes, grey)
        return axes

    def _cut(self, image: Image.Image) -> tuple[Image.Image, Section]:
        """The pixels of an image that are shown, and their place in cells (left, right, bottom, top)."""
        rows, columns = self.side.layout
        left, top, right, bottom = self.shown
        wide, high = image.width / columns, image.height / rows
        x0, y0 = math.floor(max(0.0, left) * wide), math.floor(max(0.0, top) * high)
        x1, y1 = (math.ceil(min(c, end) * at) for c, end, at in ((columns, right, wide), (rows, bottom, high)))
        return image.crop((x0, y0, x1, y1)), (x0 / wide, x1 / wide, y1 / high, y0 / high)

    def _draw_grey(self, axes: Axes, regions: Sequence[int]) -> None:
        """Cells without colour, light and hatched."""
        rows, columns = self.side.layout
        if self.side.image is not None and self.side.grid is not None:
            light = 0.5 * np.asarray(self.side.image.convert("L"), dtype=np.float64) / 255 + 0.42
            for region in regions:
                row, column = divmod(region, columns)
                (y0, y1), (x0, x1) = (
                    [round(edge * size / count) for edge in (at, at + 1)]
                    for at, size, count in ((row, light.shape[0], rows), (column, light.shape[1], columns))
                )
                place = (column, column + 1, row + 1, row)
                cell = light[y0:y1, x0:x1]
                axes.imshow(cell, extent=place, aspect="auto", cmap="gray", vmin=0, vmax=1, zorder=1)
            left, top, right, bottom = self.shown
            axes.set(xlim=(left, right), ylim=(bottom, top))
        for region in regions:
            row, column = divmod(region, columns)
            hatched = Rectangle((column, row), 1, 1, zorder=2, gid=f"unmatched-{region}")
            hatched.set(facecolor="none", edgecolor=UNMATCHED, hatch="/////", linewidth=0.0)
            axes.add_patch(hatched)

    def draw_weights(self, axes: Axes) -> None:
        """Draw the weights over the image as a heat map: fixed scale, diverging at the uniform weight."""
        rows, columns = self.side.layout
        heat = np.full(rows * columns, np.nan)
        heat[: len(self.side.weights)] = self.side.weights * len(self.side.weights)
        weights = axes.imshow(
            np.ma.masked_invalid(heat.reshape(rows, columns)),
            extent=(0.0, float(columns), float(rows), 0.0),
            aspect="auto",
            interpolation="nearest",
            cmap=HEAT,
            norm=HEAT_SCALE,
            zorder=1,
        )
        weights.set_gid(f"weights-{self.side.role}")

    def draw_grid(self, axes: Axes) -> None:
        """Draw the lines between the cells."""
        rows, columns = self.side.layout
        strength = 0.55 if min(self.cell_size) > 20 else 0.25
        axes.vlines(range(1, columns), 0, rows, colors="white", linewidths=0.7, alpha=strength, zorder=2)
        axes.hlines(range(1, rows), 0, columns, colors="white", linewidths=0.7, alpha=strength, zorder=2)

    def name_cells(self, canvas: Canvas, *, small: float = 9, rows_at: str = "left") -> None:
        """Write the names of rows and columns beside the panel, or those of the regions into their cells.

        Args:
            canvas: to write on.
            small: font size.
            rows_at: "left" or "right", where the rows are numbered.
        """
        if self.side.grid is not None:
            self._name_cells(canvas, small, rows_at)
        else:
            self._number_cells(canvas, small)

    def _name_cells(self, canvas: Canvas, small: float, rows_at: str) -> None:
        rows, columns = self.side.layout
        wide, high = self.cell_size
        em = small * 100 / 72
        for column in range(0, columns, every(1.75 * em, wide)):
            x = self.left + (column + 0.5) * wide
            canvas.text(x, self.top - 0.72 * em, column_letters(column), color=QUIET, ha="center", size=small)
        x, side = (self.left - 6, "right") if rows_at == "left" else (self.left + self.width + 6, "left")
        for row in range(0, rows, every(1.2 * em, high)):
            canvas.text(x, self.top + (row + 0.5) * high, str(row + 1), color=QUIET, ha=side, size=small)

    def _number_cells(self, canvas: Canvas, small: float) -> None:
        wide, high = self.cell_size
        em = small * 100 / 72
        if min(wide / (2.7 * em), high / (1.3 * em)) < 1:
            return
        for region in range(len(self.side.weights)):
            left, top = self.cell(region)
            canvas.text(left + 4, top + 0.72 * em, cell_name(region, None), size=small, color=INK)


def aspect_of(side: Side, section: Section | None = None) -> float:
    """Width / height of a side or of a section of it."""
    if section is None:
        return side.aspect
    rows, columns = side.layout
    left, top, right, bottom = section
    return side.aspect * ((right - left) / columns) / ((bottom - top) / rows)


def section_of(side: Side, regions: Sequence[int], margin: float = 0.3) -> Section:
    """The smallest section that shows all these regions and a margin (in cells) around them."""
    rows, columns = side.layout
    places = [divmod(region, columns) for region in regions]
    (top, left), (bottom, right) = (
        (chosen(row for row, _ in places), chosen(column for _, column in places)) for chosen in (min, max)
    )
    return (
        max(0.0, left - margin),
        max(0.0, top - margin),
        min(float(columns), right + 1 + margin),
        min(float(rows), bottom + 1 + margin),
    )


def every(needed: float, given: float) -> int:
    """The n for which labels of `needed` pixels fit when every n-th cell of `given` pixels has one."""
    return max(1, math.ceil(needed / given))
