"""One side of a match on a canvas: its image, the weights of its regions as a heat map, and the names of the cells.

Legend: R regions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from PIL import Image

from diml.explain.canvas import FAINT, INK, QUIET, Canvas
from diml.explain.formatting import Grid, cell_name, column_letters
from diml.matching import Match

Array = np.ndarray[Any, np.dtype[np.float64]]

#: Cells of low weight are shaded dark blue, cells of high weight are tinted in warm colours; the photo stays visible.
HEAT: Final = LinearSegmentedColormap.from_list(
    "diml.heat",
    [
        (0.0, (0.04, 0.05, 0.25, 0.68)),
        (0.35, (0.38, 0.10, 0.48, 0.52)),
        (0.7, (0.90, 0.36, 0.25, 0.40)),
        (1.0, (1.0, 0.85, 0.25, 0.34)),
    ],
)


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
    """The rectangle of a side on the canvas, in pixels from the top left."""

    side: Side
    left: float
    top: float
    width: float
    height: float

    @classmethod
    def fit(cls, side: Side, left: float, top: float, width: float, height: float) -> Panel:
        """The largest panel with the side's aspect ratio in a box, centred."""
        wide, high = (width, width / side.aspect) if side.aspect * height > width else (side.aspect * height, height)
        wide, high = max(wide, 24.0), max(high, 24.0)  # a strip of 1 x 100 cells stays visible
        return cls(side, left + (width - wide) / 2, top + (height - high) / 2, wide, high)

    @property
    def cell_size(self) -> tuple[float, float]:
        """(width, height) of a cell in pixels."""
        rows, columns = self.side.layout
        return self.width / columns, self.height / rows

    def cell(self, region: int) -> tuple[float, float]:
        """(left, top) of a region's cell in pixels."""
        row, column = divmod(region, self.side.layout[1])
        wide, high = self.cell_size
        return self.left + column * wide, self.top + row * high

    def draw(self, canvas: Canvas, scale: Normalize, *, rows_at: str = "left") -> None:
        """Draw the image, its heat map, the lines of the grid, and the names of rows and columns."""
        rows, columns = self.side.layout
        axes = canvas.axes(self.left, self.top, self.width, self.height)
        axes.set_gid(f"panel-{self.side.role}")
        place = (0.0, float(columns), float(rows), 0.0)
        shown = self.side.image if self.side.grid is not None else None
        if shown is not None:
            axes.imshow(shown.convert("RGB"), extent=place, aspect="auto", interpolation="antialiased")
        heat = np.full(rows * columns, np.nan)
        heat[: len(self.side.weights)] = self.side.weights
        colours = HEAT if shown is not None else HEAT.with_extremes(bad="white")
        weights = axes.imshow(
            np.ma.masked_invalid(heat.reshape(rows, columns)),
            extent=place,
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            norm=scale,
        )
        weights.set_gid(f"weights-{self.side.role}")
        self._rule(axes)
        if self.side.grid is not None:
            self._name_cells(canvas, rows_at)
        else:
            self._number_cells(canvas)

    def _rule(self, axes: Any) -> None:
        rows, columns = self.side.layout
        strength = 0.55 if min(self.cell_size) > 20 else 0.25
        axes.vlines(range(1, columns), 0, rows, colors="white", linewidths=0.7, alpha=strength)
        axes.hlines(range(1, rows), 0, columns, colors="white", linewidths=0.7, alpha=strength)
        axes.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set_edgecolor(FAINT)

    def _name_cells(self, canvas: Canvas, rows_at: str) -> None:
        rows, columns = self.side.layout
        wide, high = self.cell_size
        for column in range(0, columns, every(22, wide)):
            x = self.left + (column + 0.5) * wide
            canvas.text(x, self.top - 9, column_letters(column), color=QUIET, ha="center", size=9)
        x, side = (self.left - 6, "right") if rows_at == "left" else (self.left + self.width + 6, "left")
        for row in range(0, rows, every(15, high)):
            canvas.text(x, self.top + (row + 0.5) * high, str(row + 1), color=QUIET, ha=side, size=9)

    def _number_cells(self, canvas: Canvas) -> None:
        wide, high = self.cell_size
        if min(wide / 34, high / 16) < 1:
            return
        for region in range(len(self.side.weights)):
            left, top = self.cell(region)
            colour = INK if self.side.weights[region] > 0.5 * self.side.weights.max() else "white"
            canvas.text(left + 4, top + 9, cell_name(region, None), size=9, color=colour)


def every(needed: float, given: float) -> int:
    """The n for which labels of `needed` pixels fit when every n-th cell of `given` pixels has one."""
    return max(1, math.ceil(needed / given))


def heat_scale(sides: Sequence[Side]) -> Normalize:
    """The common scale of heat maps: smallest to largest weight, but at least a tenth of the largest wide."""
    low = min(float(side.weights.min()) for side in sides)
    high = max(float(side.weights.max()) for side in sides)
    return Normalize(min(low, 0.9 * high), high)
