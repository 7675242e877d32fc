"""Random matches of any grid, the same at each call."""

from __future__ import annotations

from typing import Any

import torch

from diml.matching import Match, Regions, match


def make_match(
    q: tuple[int, int] | int, g: tuple[int, int] | int, pairs: int = 1, signed: bool = False, **settings: Any
) -> Match:
    """Pairs of random regions: (rows, columns), or a number of regions without a grid, for query and gallery."""
    generator = torch.Generator().manual_seed(7)
    sides = []
    for grid in (q, g):
        count, known = (grid, None) if isinstance(grid, int) else (grid[0] * grid[1], grid)
        dense = torch.randn(pairs, count, 24, generator=generator)
        dense = dense if signed else dense.relu()
        sides.append(Regions.normalized(dense, dense.mean(dim=1), known))
    return match(sides[0], sides[1], **settings)
