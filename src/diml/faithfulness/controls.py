"""Orders of the same spatial structure as an order by credit, but of other regions: what credit has to beat.

An order by credit removes connected patches, a random order scattered regions, which disturbs a network in another way.
The controls remove patches as well.

Legend: R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Grid = tuple[int, int]
Cells = TypeVar("Cells", Floats, Ints)


def rolled(cells: Cells, grid: Grid, generator: np.random.Generator) -> Cells:
    """(R,) values of a grid, moved on the torus by a random shift that is not zero (if there is another region)."""
    down, right = divmod(int(generator.integers(1, max(2, len(cells)))), grid[1])
    moved: Cells = np.roll(cells.reshape(grid), (down, right), axis=(0, 1)).ravel()
    return moved


def mirrored(credit: Floats, grid: Grid, _: np.random.Generator) -> Floats:
    """Credit with left and right exchanged."""
    return credit.reshape(grid)[:, ::-1].ravel()


def rotated(credit: Floats, grid: Grid, _: np.random.Generator) -> Floats:
    """Credit turned by 90 degrees counter-clockwise, by 180 where the grid is not square."""
    return np.rot90(credit.reshape(grid), 1 if grid[0] == grid[1] else 2).ravel()


#: Name -> (credit (R,), grid, generator) -> credit of the control. Two more, `reversed` and `other pair`, need no map.
MOVED: Final[Mapping[str, Callable[[Floats, Grid, np.random.Generator], Floats]]] = {
    "shifted": rolled,
    "mirrored": mirrored,
    "rotated": rotated,
}


def derangement(count: int, generator: np.random.Generator) -> Ints:
    """A random permutation (one cycle) that leaves nothing in its place, unless there is only one."""
    order = generator.permutation(count)
    moved = np.empty(count, dtype=np.int64)
    moved[order] = np.roll(order, -1)
    return moved
