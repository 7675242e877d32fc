"""Two views of one photo under a known warp, so that the true counterpart of every cell is known.

Both views are windows of one image, the field of view of the model at twice its resolution: neither extends beyond the
photo, so that no padding gives the correspondence away.

Legend: R regions, S pixels of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Grid = tuple[int, int]

#: Shift by two of seven cells, crop of three quarters of the side, rotation in degrees, largest shift of corners.
SHIFT, CROP, TURN, CORNER = 2 / 7, 3 / 4, 15.0, 0.2

#: The four corners of the unit square: (x, y), clockwise from the top left.
CORNERS: Final = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


@dataclass(frozen=True, eq=False)
class Warp:
    """The windows of the two sides.

    Args:
        query, gallery: (3, 3) homographies from the unit square of the side, (x, y, 1), into that of the photo.
    """

    query: Floats
    gallery: Floats

    def __post_init__(self) -> None:
        for name, window in (("query", self.query), ("gallery", self.gallery)):
            if window.shape != (3, 3) or not np.isfinite(window).all() or abs(np.linalg.det(window)) < 1e-9:
                raise ValueError(f"{name}: need an invertible (3, 3) matrix, got {window.tolist()}")

    def sides(self, photo: Image.Image, size: int) -> tuple[Image.Image, Image.Image]:
        """Query and gallery view of a photo, each size x size pixels."""
        return _seen(photo, self.query, size), _seen(photo, self.gallery, size)

    def moved(self, points: Floats) -> Floats:
        """Positions in the gallery image of points (n, 2) of the query, both in units of the side."""
        return mapped(np.linalg.inv(self.gallery) @ self.query, points)


@dataclass(frozen=True, eq=False)
class Truth:
    """The true counterparts of a query's regions.

    Args:
        cell: (R,) int64, the gallery region with the nearest centre; meaningless where `inside` is False.
        inside: (R,) bool, whether the region's centre is inside the gallery image.
        place: (R, 2) position of that centre in the gallery image, x and y in units of its side.
        grid: (rows, columns) of the gallery's regions.
    """

    cell: Ints
    inside: NDArray[np.bool_]
    place: Floats
    grid: Grid

    @property
    def near(self) -> NDArray[np.bool_]:
        """(R, R) whether a gallery region is the true one or one of its 8 neighbours."""
        columns = self.grid[1]
        row, column = (part(np.arange(self.grid[0] * columns), columns) for part in (np.floor_divide, np.mod))
        rows = np.abs(self.cell[:, None] // columns - row) <= 1
        near: NDArray[np.bool_] = rows & (np.abs(self.cell[:, None] % columns - column) <= 1)
        return near


def true_cells(warp: Warp, grid_q: Grid, grid_g: Grid) -> Truth:
    """The counterparts of the regions of a query grid: the gallery cell that contains the centre of the region."""
    place = warp.moved(cell_centres(grid_q))
    inside = np.array([0 < x < 1 and 0 < y < 1 for x, y in place.tolist()], dtype=np.bool_)
    column, row = (np.clip(np.floor(place[:, axis] * grid_g[1 - axis]), 0, grid_g[1 - axis] - 1) for axis in (0, 1))
    return Truth((row * grid_g[1] + column).astype(np.int64), inside, place, grid_g)


def cell_centres(grid: Grid) -> Floats:
    """(R, 2) centres of regions in units of the image's side, x and y, row-major."""
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1)


def mapped(homography: Floats, points: Floats) -> Floats:
    """Points (n, 2) under a (3, 3) homography."""
    lifted = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ homography.T
    places: Floats = lifted[:, :2] / lifted[:, 2:]
    return places


def window(left: float, top: float, side: float) -> Floats:
    """The map from the unit square to a square window of the photo."""
    return np.array([[side, 0.0, left], [0.0, side, top], [0.0, 0.0, 1.0]])


def homography(corners: Floats) -> Floats:
    """The map from the unit square to a quadrilateral (4, 2), corners in the order of `CORNERS`.

    Source: Hartley and Zisserman, "Multiple View Geometry", 2004, section 4.1 (direct linear transformation).
    """
    rows, right = [], []
    for (x, y), (u, v) in zip(CORNERS, corners, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(right)), 1.0).reshape(3, 3)


def _identity(_: np.random.Generator) -> Warp:
    return Warp(np.eye(3), np.eye(3))


def _crop(generator: np.random.Generator) -> Warp:
    left, top = generator.uniform(0, 1 - CROP, 2)
    return Warp(np.eye(3), window(left, top, CROP))


def _flip(_: np.random.Generator) -> Warp:
    return Warp(np.eye(3), np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def _shift(generator: np.random.Generator) -> Warp:
    """Two windows of one size, the second two of seven cells to the right, left, below or above the first."""
    side = 1 / (1 + SHIFT)
    ends = [(0.0, (1 - side) / 2), (1 - side, (1 - side) / 2)]
    if generator.random() < 0.5:
        ends = [(y, x) for x, y in ends]
    if generator.random() < 0.5:
        ends.reverse()
    return Warp(window(*ends[0], side), window(*ends[1], side))


def _rotation(generator: np.random.Generator) -> Warp:
    angle = math.radians(TURN) * (1 if generator.random() < 0.5 else -1)
    side = 1 / (math.cos(angle) + abs(math.sin(angle)))
    inner = window((1 - side) / 2, (1 - side) / 2, side)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = (mapped(inner, CORNERS) - 0.5) @ turn.T + 0.5
    return Warp(inner, homography(corners))


def _homography(generator: np.random.Generator) -> Warp:
    inward = np.where(CORNERS > 0.5, -1, 1) * generator.uniform(0, CORNER, (4, 2))
    return Warp(np.eye(3), homography(CORNERS + inward))


#: Kind of warp -> a random warp of that kind.
WARPS: Final[Mapping[str, Callable[[np.random.Generator], Warp]]] = {
    "identity": _identity,
    "crop": _crop,
    "flip": _flip,
    "shift": _shift,
    "rotation": _rotation,
    "homography": _homography,
}


def _seen(photo: Image.Image, view: Floats, size: int) -> Image.Image:
    """The photo through a window, antialiased by drawing it at twice the size."""
    fine = 2 * size
    scale_in, scale_out = np.diag([1 / fine, 1 / fine, 1.0]), np.diag([photo.width, photo.height, 1.0])
    pixels = scale_out @ view @ scale_in
    coefficients: Any = (pixels / pixels[2, 2]).ravel()[:8].tolist()
    seen = photo.transform((fine, fine), Image.Transform.PERSPECTIVE, coefficients, resample=Image.Resampling.BICUBIC)
    return seen.resize((size, size), Image.Resampling.BOX)
