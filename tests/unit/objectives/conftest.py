"""A small batch of images whose classes overlap, so that every loss has something to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def make_maps() -> Callable[..., tuple[Tensor, Tensor]]:
    """make_maps(classes, per_class, dim, side, seed) -> feature maps (N, D, side, side), a leaf, and labels (N,)."""

    def make(classes: int = 4, per_class: int = 3, dim: int = 16, side: int = 2, seed: int = 0, noise: float = 2.0):
        generator = torch.Generator().manual_seed(seed)
        centers = torch.randn(classes, dim, side, side, generator=generator)
        maps = centers.repeat_interleave(per_class, 0)
        maps = maps + noise * torch.randn(maps.shape, generator=generator)
        return maps.requires_grad_(), torch.arange(classes).repeat_interleave(per_class)

    return make
