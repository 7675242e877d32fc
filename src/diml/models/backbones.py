"""Networks as sources of feature maps.

Legend: B images, C channels, H x W cells of the map, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

TokenPooling = Literal["class", "mean"]
TOKEN_POOLINGS: Final = get_args(TokenPooling)


@dataclass(frozen=True, eq=False)
class Features:
    """What a backbone sees in B images.

    Attributes:
        maps: (B, C, H, W), one vector a cell.
        pooled: (B, C), the backbone's own summary, in the same space as the cells.
    """

    maps: Tensor
    pooled: Tensor


class Backbone(nn.Module):
    """A network and how its features are read: images (B, 3, H, W), normalised, to `Features`.

    Attributes:
        net: the network, its weights under the names that its own package gives them.
        channels: C.
        image_size: the only height and width that it takes, pixels; None when it takes any.
    """

    def __init__(self, net: nn.Module, channels: int, image_size: int | None = None) -> None:
        super().__init__()
        self.net = net
        self.channels = channels
        self.image_size = image_size

    def forward(self, images: Tensor) -> Features:
        """Run the network; each kind of backbone has its own way."""
        raise NotImplementedError


class MapBackbone(Backbone):
    """A timm network whose `forward_features` gives maps, (B, C, H, W) or (B, H, W, C).

    Pooled is timm's own `forward_head(pre_logits=True)`. Most heads only average. Some go on with further layers
    (ConvNeXt: a normalisation; MobileNetV3: a 1 x 1 convolution): these are then applied to every cell as well, for
    pooled and cells must share one space. A head that does not begin by averaging (attention pooling, VGG's 7 x 7
    convolution) has no meaning for a cell: it is left out, and pooled is the mean of the cells.

    Args:
        net: the network, in evaluation mode.
        features: what `forward_features` gives for an image, to learn the layout from.
        image_size: as in `Backbone`.

    Attributes:
        head: "average", "per_cell" or "left_out", as found by trying the head on a made-up map.
    """

    def __init__(self, net: nn.Module, features: Tensor, image_size: int | None) -> None:
        super().__init__(net, 0, image_size)
        width = getattr(net, "num_features", None)
        last = getattr(net, "output_fmt", None) == "NHWC" or (features.shape[1] != width == features.shape[3])
        self.cell_axes = (1, 2) if last else (2, 3)
        self.head = self._kind_of_head(features)
        with torch.no_grad():
            self.channels = self._maps(features).shape[1]

    def forward(self, images: Tensor) -> Features:
        """Run the network."""
        net: Any = self.net
        features = net.forward_features(images)
        maps = self._maps(features)
        pooled = maps.mean(dim=(2, 3)) if self.head == "left_out" else self._summary(features)
        return Features(maps, pooled)

    def _summary(self, features: Tensor) -> Tensor:
        """The network's head as far as the classifier: (B, C)."""
        net: Any = self.net
        summary: Tensor = net.forward_head(features, pre_logits=True)
        return summary

    def _maps(self, features: Tensor) -> Tensor:
        """Features in the network's layout to (B, C, H, W), each cell through the head's further layers if any."""
        last = self.cell_axes == (1, 2)
        if self.head == "per_cell":
            cells = features if last else features.permute(0, 2, 3, 1)
            batch, height, width, channels = cells.shape
            alone = cells.reshape(-1, 1, 1, channels) if last else cells.reshape(-1, channels, 1, 1)
            return self._summary(alone).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        return features.permute(0, 3, 1, 2) if last else features

    @torch.no_grad()
    def _kind_of_head(self, features: Tensor) -> str:
        """Try the head on a map without symmetry: does it act on the mean, and if so, does it change it?"""
        ramp = torch.linspace(-1, 1, features.numel()).reshape(features.shape)
        mean = ramp.mean(dim=self.cell_axes, keepdim=True)
        try:
            whole, single = self._summary(ramp), self._summary(mean)
        except (TypeError, RuntimeError, AssertionError):  # no such argument, or a head for one size of map
            return "left_out"
        if whole.shape != single.shape or not torch.allclose(whole, single, rtol=1e-4, atol=1e-5):
            return "left_out"
        return "average" if torch.equal(mean.flatten(1), single) else "per_cell"


class TokenBackbone(Backbone):
    """A plain vision transformer: its patch tokens are the cells, prefix tokens are dropped.

    Pooled is the class token or the mean of the patch tokens. timm's normalisation after pooling (`fc_norm`), where a
    model has one, is applied to pooled and to every cell.

    Args:
        net: the network.
        features: (1, L, C), what `forward_features` gives for an image.
        image_size: as in `Backbone`.
        token_pooling: "class" or "mean"; None: the class token where the model's own head reads it, else the mean.

    Raises:
        ValueError: "class" of a model without class token.
    """

    def __init__(
        self, net: nn.Module, features: Tensor, image_size: int | None, token_pooling: TokenPooling | None
    ) -> None:
        super().__init__(net, features.shape[2], image_size)
        self.prefix = prefix_tokens(net)
        has_class = getattr(net, "cls_token", None) is not None
        if token_pooling == "class" and not has_class:
            raise ValueError("token_pooling: this model has no class token, got 'class'; use 'mean'")
        own: TokenPooling = "class" if has_class and getattr(net, "global_pool", None) == "token" else "mean"
        self.token_pooling = token_pooling or own

    def forward(self, images: Tensor) -> Features:
        """Run the network."""
        net: Any = self.net
        tokens = net.forward_features(images)
        patches = tokens[:, self.prefix :]
        pooled = tokens[:, 0] if self.token_pooling == "class" else patches.mean(dim=1)
        norm = getattr(net, "fc_norm", None)
        if norm is not None:
            patches, pooled = norm(patches), norm(pooled)
        height, width = token_grid(net, images.shape[2], images.shape[3])
        return Features(patches.transpose(1, 2).unflatten(2, (height, width)), pooled)


def prefix_tokens(net: nn.Module) -> int:
    """How many tokens stand before the patches: class, distillation, registers."""
    return int(getattr(net, "num_prefix_tokens", 0) or 0)


def token_grid(net: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patch tokens for an image of this size; (0, 0) when the model does not say."""
    patches: Any = getattr(net, "patch_embed", None)
    if hasattr(patches, "dynamic_feat_size"):
        rows, columns = patches.dynamic_feat_size((height, width))
    else:
        rows, columns = getattr(patches, "grid_size", None) or (0, 0)
    return int(rows), int(columns)
