"""Feature maps of any size resized to G x G cells.

Legend: N images, D channels, H x W cells of a map, G x G cells of the grid.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: The finest grid: 196 regions, the tokens of a ViT-B/16 at 224 pixels.
MAX_GRID: Final = 14


def resize_grid(maps: Tensor, grid: int) -> Tensor:
    """Resize maps to `grid` x `grid` cells: by averaging where G divides H and W, else by up-sampling and averaging.

    Where G divides both sides of the map, each cell is the mean of its block. Otherwise the map is up-sampled
    bilinearly (corners aligned) to 4G x 4G, and each cell is the mean of 4 x 4 points.

    Args:
        maps: (N, D, H, W) float, any H and W of at least 1.
        grid: G, 1 to 14.

    Returns:
        (N, D, G, G), same dtype and device, differentiable; `maps` itself where H = W = G.

    Raises:
        TypeError: `maps` is not a floating-point tensor, or `grid` not an integer.
        ValueError: `maps` is not four-dimensional or has no cells; `grid` is out of range.

    Source: Zhao et al., ICCV 2021, and the authors' evaluation code (docs/method.md, "From an image to regions").

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


def divide_over_grid(maps: Tensor, grid: int) -> Tensor:
    """Divide the cells of maps among `grid` x `grid` regions by the area that they share; the sum is kept.

    Unlike `resize_grid`, which averages, a region receives the sum of the fractions of cells that it covers, so that
    the sum over the regions is the sum over the cells.

    Args:
        maps: (N, D, H, W) float, any H and W of at least 1.
        grid: G, 1 to 14.

    Returns:
        (N, D, G, G), same dtype and device, differentiable.

    Example:
        >>> divide_over_grid(torch.ones(1, 1, 7, 7), 4).sum()
        tensor(49.)
    """
    rows, columns = (area_overlap(size, grid).to(maps) for size in maps.shape[2:])
    return torch.einsum("gh,ndhw,kw->ndgk", rows, maps, columns)


def area_overlap(cells: int, regions: int) -> Tensor:
    """(regions, cells) float64: fraction of each cell that lies in each region, along one side; columns sum to 1."""
    # Borders in units of 1 / (cells * regions) of the side: integers, so that nothing is rounded before the division.
    left = torch.arange(cells, dtype=torch.float64) * regions
    start = torch.arange(regions, dtype=torch.float64).unsqueeze(1) * cells
    shared = torch.minimum(left + regions, start + cells) - torch.maximum(left, start)
    return shared.clamp_min(0) / regions


def check_grid(grid: int) -> int:
    """Return `grid` if it is an integer from 1 to 14; raise TypeError or ValueError otherwise."""
    if isinstance(grid, bool) or not isinstance(grid, int):
        raise TypeError(f"grid: need an integer from 1 to {MAX_GRID}, got {grid!r} ({type(grid).__name__})")
    if not 1 <= grid <= MAX_GRID:
        raise ValueError(f"grid: need 1 to {MAX_GRID} cells a side, got {grid}; None keeps the backbone's own cells")
    return grid
