"""Names of regions as people say them: columns by letter, rows by number, as on a map: `C2`."""

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


def cell_of(region: int, grid: Grid | None) -> tuple[int, int] | None:
    """(row, column) of a region, both counted from 0; None where the regions form no known grid."""
    return None if grid is None else divmod(region, grid[1])


def cell_name(region: int, grid: Grid | None) -> str:
    """The name of a region: `A1` is the cell at the top left; `#5` where there is no known grid.

    Example:
        >>> cell_name(6, (4, 4)), cell_name(6, None)
        ('C2', '#6')
    """
    if grid is None:
        return f"#{region}"
    row, column = divmod(region, grid[1])
    return f"{column_letters(column)}{row + 1}"
