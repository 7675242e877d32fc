"""How much of every region of an image, as the network sees it, is covered by something that is known in its pixels.

A region is a cell of the grid in the view of the image, which is resized and may be cropped. All areas are computed in
pixels of the upright image as it is stored, without resampling.

Legend: H x W pixels of an image, R regions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diml.data.transforms import Preprocess, _short_side_to

#: (width, height) in pixels.
Size = tuple[int, int]
#: (H, W) float32, fraction of each pixel that is covered.
Plane = NDArray[np.float32]
#: left, top, right, bottom in pixels of the image, counted from the outer edge of its first pixel.
Box = tuple[float, float, float, float]


def view_box(preprocess: Preprocess, size: Size) -> Box:
    """The part of an image that the network sees, in pixels of the image.

    Args:
        preprocess: of the embedder.
        size: (width, height) of the upright image.
    """
    if preprocess.mode == "square":
        return (0.0, 0.0, float(size[0]), float(size[1]))
    side = preprocess.size
    width, height = _short_side_to(size, preprocess.short_side)
    left, top = round((width - side) / 2), round((height - side) / 2)
    x, y = size[0] / width, size[1] / height
    return (left * x, top * y, (left + side) * x, (top + side) * y)


def region_coverage(plane: Plane, view: Box, grid: tuple[int, int]) -> NDArray[np.float64]:
    """(R,) fraction of the area of each region that is covered, row-major; exact where pixels are cut by borders.

    Args:
        plane: (H, W), fraction of each pixel that is covered.
        view: the part of the image that is divided into regions.
        grid: (rows, columns).
    """
    left, top, right, bottom = view
    rows = _overlap(plane.shape[0], top, bottom, grid[0])
    columns = _overlap(plane.shape[1], left, right, grid[1])
    covered: NDArray[np.float64] = rows @ plane.astype(np.float64) @ columns.T
    return covered.round(12).clip(0, 1).flatten()  # a region that is all covered is exactly 1


def _overlap(pixels: int, start: float, end: float, parts: int) -> NDArray[np.float64]:
    """(parts, pixels) fraction of each of `parts` equal intervals from start to end that lies in each pixel."""
    edges = start + (end - start) * np.arange(parts + 1) / parts
    first = np.arange(pixels, dtype=np.float64)
    shared = np.minimum(first + 1, edges[1:, None]) - np.maximum(first, edges[:-1, None])
    return np.asarray(shared.clip(0) * (parts / (end - start)))
