"""Changes of the same spatial structure as those by a ledger, but of other regions: what a ledger has to beat.

An order by credit removes connected patches, a random order scattered regions, which disturbs a network in another way.
The controls remove patches as well, of the same size at each step.

Legend: R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Grid = tuple[int, int]


def shifted(grid: Grid, generator: np.random.Generator) -> Ints:
    """(R,) where each region moves on the torus, by a random shift that is not zero (if there is another region)."""
    count = grid[0] * grid[1]
    down, right = divmod(int(generator.integers(1, max(2, count))), grid[1])
    return _destinations(np.roll(np.arange(count).reshape(grid), (down, right), axis=(0, 1)))


def mirrored(grid: Grid, _: np.random.Generator) -> Ints:
    """(R,) where each region moves when left and right are exchanged."""
    return _destinations(np.arange(grid[0] * grid[1]).reshape(grid)[:, ::-1])


def rotated(grid: Grid, _: np.random.Generator) -> Ints:
    """(R,) where each region moves by 90 degrees counter-clockwise, by 180 where the grid is not square."""
    return _destinations(np.rot90(np.arange(grid[0] * grid[1]).reshape(grid), 1 if grid[0] == grid[1] else 2))


#: Name -> (grid, generator) -> (R,) int64, the region to which each region moves.
MOVES: Final[Mapping[str, Callable[[Grid, np.random.Generator], Ints]]] = {
    "shifted": shifted,
    "mirrored": mirrored,
    "rotated": rotated,
}


def grown(grid: Grid, generator: np.random.Generator) -> Ints:
    """(R,) all regions in a random order whose beginnings are connected: each touches an earlier one at an edge."""
    rows, columns = grid
    order = [int(generator.integers(rows * columns))]
    border: list[int] = []
    seen = set(order)
    while len(order) < rows * columns:
        row, column = divmod(order[-1], columns)
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= y < rows and 0 <= x < columns and y * columns + x not in seen:
                border.append(y * columns + x)
                seen.add(y * columns + x)
        order.append(border.pop(int(generator.integers(len(border)))))
    return np.array(order, dtype=np.int64)


def controls_of(changed: Sequence[Ints], grid: Grid, generator: np.random.Generator) -> dict[str, list[Ints]]:
    """Name -> the regions changed at each step by a control.

    - shifted, mirrored, rotated: the same masks elsewhere (see `MOVES`);
    - connected: random connected regions of the same number (see `grown`);
    - reversed: those that are otherwise changed last come first.

    Args:
        changed: F sets of regions, from none to all, each a superset of the one before.
        grid: of the regions.
        generator: of the controls.
    """
    moves = {name: move(grid, generator) for name, move in MOVES.items()}
    controls = {name: [move[regions] for regions in changed] for name, move in moves.items()}
    patch, everything = grown(grid, generator), np.arange(grid[0] * grid[1])
    controls["connected"] = [patch[: len(regions)] for regions in changed]
    controls["reversed"] = [np.setdiff1d(everything, regions) for regions in reversed(changed)]
    return controls


def derangement(count: int, generator: np.random.Generator) -> Ints:
    """A random permutation (one cycle) that leaves nothing in its place, unless there is only one."""
    order = generator.permutation(count)
    moved = np.empty(count, dtype=np.int64)
    moved[order] = np.roll(order, -1)
    return moved


def _destinations(sources: Ints) -> Ints:
    """(R,) where each region goes, from the grid of regions that come to each place."""
    return np.argsort(sources.ravel()).astype(np.int64)
