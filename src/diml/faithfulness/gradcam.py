"""Grad-CAM of the pooled cosine, by the library grad-cam: the importance of the query's regions for that cosine.

Legend: B pairs, S pixels of a side, R regions.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diml.matching import Regions
from diml.models import Embedder

Floats = NDArray[np.float64]

#: Images per batch; the backward pass needs a hundred times the memory of the forward pass.
BATCH = 4


def check_grad_cam() -> None:
    """Raise ValueError where the library is missing."""
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise ValueError(
            "grad_cam: need the package grad-cam, which is missing; pip install 'diml[faithfulness]', or omit this "
            "order with --no-grad-cam"
        )


def grad_cam_credit(embedder: Embedder, images: Tensor, gallery: Regions, grid: tuple[int, int]) -> Floats:
    """(B, R) mean Grad-CAM value of each region of the query for the pooled cosine of each pair.

    Args:
        embedder: the network.
        images: (B, 3, S, S) the queries, normalised.
        gallery: B images that they are compared with.
        grid: (rows, columns) of the query's regions.

    Raises:
        ValueError: the library is missing, or no layer of the network outputs the feature map (plain transformers).

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    check_grad_cam()
    from pytorch_grad_cam import GradCAM

    layer = _map_layer(embedder, images[:1])
    parts = []
    with GradCAM(model=_Pooled(embedder), target_layers=[layer]) as cam, torch.enable_grad():
        for start in range(0, len(images), BATCH):
            given = images[start : start + BATCH].detach().clone().requires_grad_(True)
            targets = [_PooledCosine(vector) for vector in gallery.pooled[start : start + BATCH].detach()]
            heat = cam(input_tensor=given, targets=targets)
            parts.append(torch.from_numpy(np.asarray(heat, dtype=np.float64)))
    embedder.zero_grad(set_to_none=True)
    credit: Floats = F.adaptive_avg_pool2d(torch.cat(parts).unsqueeze(1), grid).flatten(1).numpy()
    return credit


class _Pooled(nn.Module):
    """The embedder as a network that outputs the pooled vectors."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor) -> Tensor:
        regions: Regions = self.embedder(images)
        return regions.pooled


class _PooledCosine:
    """The explained quantity: the cosine with one gallery image."""

    def __init__(self, pooled: Tensor) -> None:
        self.pooled = pooled

    def __call__(self, output: Tensor) -> Tensor:
        return output @ self.pooled


def _map_layer(embedder: Embedder, image: Tensor) -> nn.Module:
    """The last layer executed whose output is the backbone's feature map."""
    outputs: list[tuple[nn.Module, Any]] = []
    net: nn.Module = embedder.backbone.net
    layers: list[nn.Module] = [module for module in net.modules() if module is not net]
    hooks = [layer.register_forward_hook(lambda layer, _, output: outputs.append((layer, output))) for layer in layers]
    try:
        with torch.no_grad():
            maps = embedder.backbone(image).maps
    finally:
        for hook in hooks:
            hook.remove()
    for layer, output in reversed(outputs):
        if isinstance(output, Tensor) and output.shape == maps.shape and torch.equal(output, maps):
            found: nn.Module = layer
            return found
    raise ValueError(
        f"grad_cam: no layer of {embedder.config.backbone!r} outputs the feature map; omit this order with "
        "--no-grad-cam"
    )
