"""The pooled vector of an image as the sum of the shares of its regions, where it is such a sum.

Where a backbone pools by the mean of its cells x_i and the head is affine, the pooled vector is

    W mean(x_i) + b = sum_i (W x_i + b) / n,

so each cell has a share of it, and the pooled cosine of two images is a sum over pairs of cells. The shares of cells
are divided among the regions of the grid by area.

Legend: N images, C channels of the backbone, D of the embedding, H x W cells of its map, R regions.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from diml.models.backbones import Backbone, Features, MapBackbone, TokenBackbone
from diml.models.grids import divide_over_grid
from diml.models.modules import ModuleBackbone

#: How far the mean of the cells may be from the pooled vector, as a fraction: rounding of the network, with a margin.
_ROUNDING: Final = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-3, torch.float64: 1e-3}
#: Rounding grows with how far cells cancel each other in their mean; beyond this factor the mean is not trusted.
_CANCELLING: Final = 20.0
_REMEDY: Final = "with pooled='grid_mean' the pooled cosine can be divided among pairs of regions"


def pooled_shares(maps: Tensor, pooled: Tensor, grid: int | None, precision: torch.dtype) -> Tensor | None:
    """Share of each region of the pooled vectors, or None where these are not the mean of the cells.

    Args:
        maps: (N, D, H, W) float32 or float64, every cell embedded by the head.
        pooled: (N, D), the pooled feature embedded by the head, of the same dtype; only its direction counts.
        grid: G for G x G regions; None: every cell is a region.
        precision: the coarsest dtype in which the network computed.

    Returns:
        (N, R, D) without gradient, summing to `pooled` over the regions; what rounding in the network left is
        distributed in proportion to their lengths. None where that is more than rounding.
    """
    maps, pooled = maps.detach(), pooled.detach()
    with torch.autocast(maps.device.type, enabled=False):
        cells = maps if grid is None else divide_over_grid(maps, grid)
        shares: Tensor = cells.flatten(2).transpose(1, 2) / (maps.shape[2] * maps.shape[3])
        target, mean = (torch.linalg.vector_norm(v, dim=1) for v in (pooled, shares.sum(dim=1)))
        size = torch.linalg.vector_norm(maps, dim=1).mean(dim=(1, 2))
        nonzero = torch.where(mean > 0, mean, 1)
        shares = shares * (target / nonzero)[:, None, None]
        left = pooled - shares.sum(dim=1)
        tolerated = _ROUNDING[precision] * target * (size / nonzero).clamp_max(_CANCELLING)
        if not (torch.linalg.vector_norm(left, dim=1) <= tolerated).all():
            return None
        length = torch.linalg.vector_norm(shares, dim=2, keepdim=True)
        total = length.sum(dim=1, keepdim=True)
        shares += left.unsqueeze(1) * (length / torch.where(total > 0, total, 1))
    return shares


def not_a_mean(backbone: Backbone, name: str) -> str:
    """Why the pooled feature of a backbone, called `name`, is known not to be the mean of its cells; else empty."""
    if isinstance(backbone, TokenBackbone | ModuleBackbone) and backbone.token_pooling == "class":
        what = f"backbone {name!r} pools by its class token, which is not a mean of the cells"
        return f"{what}; with token_pooling='mean', or {_REMEDY}"
    if isinstance(backbone, TokenBackbone) and backbone.token_pooling == "attention":
        what = f"backbone {name!r} pools by the attention of its head, which is not a mean of the cells"
        return f"{what}; with token_pooling='mean', or {_REMEDY}"
    norm = getattr(backbone.net, "fc_norm", None) if isinstance(backbone, TokenBackbone) else None
    if not (norm is None or isinstance(norm, torch.nn.Identity)):
        what = f"backbone {name!r} normalises the mean of its cells ({type(norm).__name__}), which is not affine"
        return f"{what}; {_REMEDY}"
    if isinstance(backbone, MapBackbone) and backbone.head == "per_cell":
        return f"backbone {name!r} has further layers after the mean of its cells, which are not affine; {_REMEDY}"
    return ""


def found_no_mean(features: Features, backbone: str, head: str) -> str:
    """Why `pooled_shares` found that pooled is not the mean of the cells: for the backbone or for the head."""
    maps, pooled = (part if part.dtype == torch.float64 else part.float() for part in (features.maps, features.pooled))
    precision = coarsest(features.maps.dtype, features.pooled.dtype)
    if pooled_shares(maps, pooled, None, precision) is None:
        return f"backbone {backbone!r} pools by something else than the mean of its cells; {_REMEDY}"
    return f"head {head!r} on {backbone!r} is not affine, or the backbone rescales its pooled feature; {_REMEDY}"


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype with the fewest digits."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
