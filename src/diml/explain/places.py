"""Where a set of regions lies in an image, in words: "centre", "top left", "lower half", "whole image".

Legend: R regions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from diml.matching.cell_names import Grid


class _Area(NamedTuple):
    """A rectangle in fractions of an image; `outside` stands for everything but it."""

    name: str
    left: float
    top: float
    right: float
    bottom: float
    outside: bool = False

    def overlap(self, row: int, column: int, grid: Grid) -> float:
        """Fraction of an image that a cell of its grid shares with this area."""
        rows, columns = grid
        width = min(self.right, (column + 1) / columns) - max(self.left, column / columns)
        height = min(self.bottom, (row + 1) / rows) - max(self.top, row / rows)
        inside = max(width, 0.0) * max(height, 0.0)
        return 1 / (rows * columns) - inside if self.outside else inside

    @property
    def size(self) -> float:
        """Fraction of the image."""
        inside = (self.right - self.left) * (self.bottom - self.top)
        return 1 - inside if self.outside else inside

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


#: In the order in which ties are settled. A name may stand for several rectangles.
_AREAS: Final = (
    _Area("whole image", 0, 0, 1, 1),
    _Area("centre", 1 / 4, 1 / 4, 3 / 4, 3 / 4),
    _Area("upper half", 0, 0, 1, 1 / 2),
    _Area("lower half", 0, 1 / 2, 1, 1),
    _Area("left half", 0, 0, 1 / 2, 1),
    _Area("right half", 1 / 2, 0, 1, 1),
    _Area("top left", 0, 0, 1 / 2, 1 / 2),
    _Area("top right", 1 / 2, 0, 1, 1 / 2),
    _Area("bottom left", 0, 1 / 2, 1 / 2, 1),
    _Area("bottom right", 1 / 2, 1 / 2, 1, 1),
    _Area("top", 0, 0, 1, 1 / 4),
    _Area("top", 1 / 4, 0, 3 / 4, 1 / 2),
    _Area("bottom", 0, 3 / 4, 1, 1),
    _Area("bottom", 1 / 4, 1 / 2, 3 / 4, 1),
    _Area("left", 0, 0, 1 / 4, 1),
    _Area("left", 0, 1 / 4, 1 / 2, 3 / 4),
    _Area("right", 3 / 4, 0, 1, 1),
    _Area("right", 1 / 2, 1 / 4, 1, 3 / 4),
    _Area("edges", 1 / 4, 1 / 4, 3 / 4, 3 / 4, outside=True),
)

#: Fraction of an image from which on it is called whole.
_WHOLE: Final = 6 / 7


def place_of(regions: Iterable[int], grid: Grid | None) -> str:
    """The name of the area of an image that agrees best with a set of regions.

    Agreement is the area that both share over the area that either covers; of areas that agree equally well the one
    whose middle is nearer is taken.

    Args:
        regions: row-major indices of regions of the grid.
        grid: (rows, columns), or None where the regions form no known grid.

    Returns:
        The name; "most of the image" where the whole image agrees best and more than a seventh of it is missing;
        "scattered regions" where no area holds half of the set; empty for no regions or no grid.

    Example:
        >>> place_of([0, 1, 4, 5], (4, 4)), place_of([5, 6, 9, 10], (4, 4)), place_of(range(16), (4, 4))
        ('top left', 'centre', 'whole image')
    """
    cells = [divmod(region, grid[1]) for region in regions] if grid is not None else []
    if not cells or grid is None:
        return ""
    size = len(cells) / (grid[0] * grid[1])
    x = sum(column + 0.5 for _, column in cells) / len(cells) / grid[1]
    y = sum(row + 0.5 for row, _ in cells) / len(cells) / grid[0]
    best, name, held = (0.0, 0.0), "", 0.0
    for area in _AREAS:
        shared = sum(area.overlap(row, column, grid) for row, column in cells)
        away = (area.middle[0] - x) ** 2 + (area.middle[1] - y) ** 2
        fit = (round(shared / (size + area.size - shared), 9), round(-away, 9))
        if not name or fit > best:
            best, name, held = fit, area.name, shared
    if name == "whole image" and size < _WHOLE:
        return "most of the image"
    return name if held >= 0.5 * size - 1e-9 else "scattered regions"


def placed(place: str, count: int, image: str) -> str:
    """A place in the middle of a sentence.

    Args:
        place: as of `place_of`.
        count: number of the regions.
        image: "query" or "gallery image".

    Example:
        >>> placed("centre", 4, "query"), placed("whole image", 16, "query"), placed("", 3, "query")
        ('the centre of the query', 'the whole query', '3 regions of the query')
    """
    if place == "whole image":
        return f"the whole {image}"
    if place == "most of the image":
        return f"most of the {image}"
    if not place:
        return f"{count} regions of the {image}" if count != 1 else f"one region of the {image}"
    return f"{place} of the {image}" if place == "scattered regions" else f"the {place} of the {image}"
