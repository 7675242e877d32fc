"""Names of regions as people read them off an image: `A1` is the cell at the top left, `B1` the one to its right.

Everything that is printed or drawn uses these names; tensors and JSON have row-major indices.
"""

from __future__ import annotations

Grid = tuple[int, int]


def column_letters(column: int) -> str:
    """The letters of a column counted from 0: A to Z, then AA, AB and so on."""
    letters = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def cell_name(region: int, grid: Grid | None) -> str:
    """The name of a region, column by letter and row by number: `A1` is the top left; `#5` without a known grid.

    Example:
        >>> cell_name(6, (4, 4)), cell_name(6, None)
        ('C2', '#6')
    """
    if grid is None:
        return f"#{region}"
    row, column = divmod(region, grid[1])
    return f"{column_letters(column)}{row + 1}"
