"""Feature maps of any size brought to G x G cells.

Legend: N images, D channels, H x W cells of a map, G x G cells of the grid.
"""

from __future__ import annotations

from typing import Final

import torch.nn.functional as F
from torch import Tensor

#: The finest grid: 196 regions, the tokens of a ViT-B/16 at 224 pixels.
MAX_GRID: Final = 14


def resize_grid(maps: Tensor, grid: int) -> Tensor:
    """Bring maps to `grid` x `grid` cells: averages where they fit, otherwise finer cells first, then averages.

    Where G divides both sides of the map, each cell is the mean of its block. Otherwise the map is up-sampled
    bilinearly (corners aligned) to 4G x 4G, and each cell is the mean of 4 x 4 points.

    Args:
        maps: (N, D, H, W) float, any H and W of at least 1.
        grid: G, 1 to 14.

    Returns:
        (N, D, G, G), same dtype and device, differentiable; `maps` itself where H = W = G.

    Raises:
        TypeError: `maps` is not a floating-point tensor, or `grid` not an integer.
        ValueError: `maps` is not four-dimensional or has no cells; `grid` is out of its range.

    Source: Zhao et al., ICCV 2021, and the authors' evaluation code (method.md, section 1).

    Example:
        >>> resize_grid(torch.randn(2, 128, 7, 7), 4).shape
        torch.Size([2, 128, 4, 4])
    """
    grid = check_grid(grid)
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        got = maps.dtype if isinstance(maps, Tensor) else type(maps).__name__
        raise TypeError(f"maps: need a floating-point tensor (N, D, H, W), got {got}; convert with .float()")
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        raise ValueError(f"maps: need shape (N, D, H, W) with D, H, W of at least 1, got {tuple(maps.shape)}")
    height, width = maps.shape[2:]
    if (height, width) == (grid, grid):
        return maps
    if height % grid or width % grid:
        maps = F.interpolate(maps, size=(4 * grid, 4 * grid), mode="bilinear", align_corners=True)
    return F.adaptive_avg_pool2d(maps, grid)


def check_grid(grid: int) -> int:
    """Return `grid` when it is an integer from 1 to 14; TypeError or ValueError otherwise."""
    if isinstance(grid, bool) or not isinstance(grid, int):
        raise TypeError(f"grid: need an integer from 1 to {MAX_GRID}, got {grid!r} ({type(grid).__name__})")
    if not 1 <= grid <= MAX_GRID:
        raise ValueError(f"grid: need 1 to {MAX_GRID} cells a side, got {grid}; None keeps the backbone's own cells")
    return grid
