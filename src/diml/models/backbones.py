"""Networks as sources of feature maps, and the mode and precision in which they run.

Legend: B images, C channels, H x W cells of the map, L tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

TokenPooling = Literal["class", "mean", "attention"]
TOKEN_POOLINGS: Final = get_args(TokenPooling)
Precision = Literal["auto", "float32", "bfloat16", "float16"]

_TYPES: Final = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Features:
    """Output of a backbone for B images.

    Attributes:
        maps: (B, C, H, W), one vector per cell.
        pooled: (B, C), the backbone's own global feature, in the same space as the cells.
        masses: (B, H, W), how much the network attends to each cell, at least 0, of any scale. A backbone of your own
            may give them; for vision transformers of timm `diml.models.rollout` adds them. None: there are none.
    """

    maps: Tensor
    pooled: Tensor
    masses: Tensor | None = None

    def __repr__(self) -> str:
        return f"Features(maps {tuple(self.maps.shape)}, pooled {tuple(self.pooled.shape)}, {self.maps.dtype})"


class Backbone(nn.Module):
    """A network and how its features are read: normalised images (B, 3, H, W) to `Features`.

    A subclass of your own decides freely what is a cell and how cells are pooled; `Embedder` uses it unchanged.

    Attributes:
        net: the network, with the parameter names of its own package.
        channels: C.
        image_size: the only image height and width it accepts, pixels; None when it accepts any.

    Example:
        >>> class LastStage(Backbone):
        ...     def forward(self, images):
        ...         maps = self.net(images)
        ...         return Features(maps, maps.amax(dim=(2, 3)))
        >>> embedder = diml.Embedder(LastStage(net, channels=512))  # doctest: +SKIP
    """

    def __init__(self, net: nn.Module, channels: int, image_size: int | None = None) -> None:
        super().__init__()
        self.net = net
        self.channels = channels
        self.image_size = image_size

    def forward(self, images: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W)."""
        raise NotImplementedError


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on a device; None for float32 throughout.

    "auto" prefers float16 to bfloat16 on accelerators: with MobileNetV2 on photos, cosines between images moved by at
    most 0.002 in float16 and by 0.027 in bfloat16, which reorders neighbours.
    """
    if precision != "auto":
        return _TYPES[precision]
    return None if device.type == "cpu" else torch.float16


@contextlib.contextmanager
def inference(module: nn.Module, device: torch.device, low: torch.dtype | None) -> Iterator[None]:
    """Evaluation mode, no gradient, autocast to `low`; afterwards the mode of every submodule is restored.

    Every one on its own, because batch normalisation may be frozen alone.
    """
    training = [part for part in module.modules() if part.training]
    if training:  # setting the mode of hundreds of submodules takes a tenth of the time of one image
        module.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype=low, enabled=low is not None):
            yield
    finally:
        for part in training:
            part.training = True


def try_network(net: nn.Module, run: Callable[[Tensor], Any], size: int, name: str, *, usual: int | None = None) -> Any:
    """The output of `run`, a method of `net`, for one synthetic image, in evaluation mode; reveals the layout.

    `usual` is the size that the network was made for, where that is known.

    Raises:
        ValueError: the network does not accept an image of `size` x `size` pixels.
    """
    first = next((value for value in net.state_dict().values() if value.is_floating_point()), torch.zeros(0))
    image = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size).to(first.device, first.dtype)
    try:
        with inference(net, first.device, None):
            return run(image)
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        what = f": {error}" if str(error) else f" ({type(error).__name__})"
        remedy = "where it needs another size, set it with preprocess=Preprocess(size=..., resize=...), --size"
        if usual not in (None, size):
            remedy = f"it was made for {usual} pixels: size={usual}, on the command line --size {usual}"
        raise ValueError(
            f"backbone: {name!r} fails on one image of {size} x {size} pixels, (1, 3, {size}, {size}){what}; {remedy}"
        ) from error


class MapBackbone(Backbone):
    """A network in timm's style whose `forward_features` returns maps, (B, C, H, W) or (B, H, W, C).

    Pooled is timm's own `forward_head(pre_logits=True)`. Most heads only average. Some continue with further layers
    (ConvNeXt: a normalisation; MobileNetV3: a 1 x 1 convolution): these are then applied to every cell as well, because
    pooled and cells must share one space. A head that does not begin by averaging (attention pooling, VGG's 7 x 7
    convolution) is not defined for a single cell: it is omitted, and pooled is the mean of the cells.

    Args:
        net: the network, in evaluation mode.
        features: output of `forward_features` for one image, from which the layout is inferred.
        image_size: as in `Backbone`.
        channels_last: the layout where it is known: (B, H, W, C).

    Attributes:
        head: "average", "per_cell" or "left_out", as found by applying the head to a synthetic map.
    """

    def __init__(
        self, net: nn.Module, features: Tensor, image_size: int | None, *, channels_last: bool | None = None
    ) -> None:
        super().__init__(net, 0, image_size)
        width = getattr(net, "num_features", None)
        last = channels_last
        if last is None:
            last = getattr(net, "output_fmt", None) == "NHWC" or (features.shape[1] != width == features.shape[3])
        self.cell_axes = (1, 2) if last else (2, 3)
        self.head = self._kind_of_head(features)
        with torch.no_grad():
            self.channels = self._maps(features).shape[1]

    def forward(self, images: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W)."""
        net: Any = self.net
        features = net.forward_features(images)
        maps = self._maps(features)
        pooled = maps.mean(dim=(2, 3)) if self.head == "left_out" else self._summary(features)
        return Features(maps, pooled)

    def _summary(self, features: Tensor) -> Tensor:
        """The network's head up to, and without, the classifier: (B, C)."""
        net: Any = self.net
        summary: Tensor = net.forward_head(features, pre_logits=True)
        return summary

    def _maps(self, features: Tensor) -> Tensor:
        """Features in the network's layout to (B, C, H, W), every cell through the head's further layers, if any."""
        last = self.cell_axes == (1, 2)
        if self.head == "per_cell":
            cells = features if last else features.permute(0, 2, 3, 1)
            batch, height, width, channels = cells.shape
            alone = cells.reshape(-1, 1, 1, channels) if last else cells.reshape(-1, channels, 1, 1)
            return self._summary(alone).reshape(batch, height, width, -1).permute(0, 3, 1, 2)
        return features.permute(0, 3, 1, 2) if last else features

    @torch.no_grad()
    def _kind_of_head(self, features: Tensor) -> str:
        """Apply the head to a map without symmetry: does it depend on the mean only, and does it change the mean?"""
        ramp = torch.linspace(-1, 1, features.numel()).reshape(features.shape).to(features)
        mean = ramp.mean(dim=self.cell_axes, keepdim=True)
        try:
            whole, single = self._summary(ramp), self._summary(mean)
        except (TypeError, RuntimeError, AssertionError):  # no such argument, or a head for one map size only
            return "left_out"
        if whole.shape != single.shape or not torch.allclose(whole, single, rtol=1e-4, atol=1e-5):
            return "left_out"
        return "average" if torch.equal(mean.flatten(1), single) else "per_cell"


class TokenBackbone(Backbone):
    """A plain vision transformer of timm: its patch tokens are the cells, prefix tokens are dropped.

    Pooled is the class token (the mean of class and distillation token, where a model has both), the mean of the patch
    tokens, or what the attention pooling of the model's head makes of all tokens. An attention pooling (SigLIP) ends in
    further layers; pooled and cells must share one space, so each cell then goes through it alone. timm's normalisation
    after pooling (`fc_norm`), where a model has one, is applied to pooled and to every cell.

    Args:
        net: the network.
        features: (1, L, C), output of `forward_features` for one image.
        image_size: as in `Backbone`.
        token_pooling: "class", "mean" or "attention"; None: as the model's own head pools, the mean where that is
            something else.

    Attributes:
        prefix: tokens before those of the patches: class, distillation, registers.
        class_tokens: how many of them are read with "class".

    Raises:
        ValueError: "class" for a model without a class token, "attention" for one without attention pooling.

    Source: for cells through attention pooling, Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022.
    """

    def __init__(
        self, net: nn.Module, features: Tensor, image_size: int | None, token_pooling: TokenPooling | None
    ) -> None:
        super().__init__(net, features.shape[2], image_size)
        self.prefix = prefix_tokens(net)
        self.class_tokens = 2 if getattr(net, "dist_token", None) is not None else 1
        possible = self._poolings()
        if token_pooling is not None and token_pooling not in possible:
            what = {"class": "class token", "attention": "attention pooling"}[token_pooling]
            others = " or ".join(map(repr, possible))
            raise ValueError(f"token_pooling: this model has no {what}, got {token_pooling!r}; use {others}")
        own = {"token": "class", "map": "attention"}.get(str(getattr(net, "global_pool", "")), "mean")
        self.token_pooling: TokenPooling = token_pooling or (own if own in possible else "mean")

    def forward(self, images: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W)."""
        net: Any = self.net
        tokens = net.forward_features(images)
        patches = tokens[:, self.prefix :]
        if self.token_pooling == "attention":
            pooled = net.pool(tokens)
            patches = net.attn_pool(patches.reshape(-1, 1, patches.shape[2])).reshape(*patches.shape[:2], -1)
        elif self.token_pooling == "class":
            pooled = tokens[:, 0] if self.class_tokens == 1 else tokens[:, : self.class_tokens].mean(dim=1)
        else:
            pooled = patches.mean(dim=1)
        norm = getattr(net, "fc_norm", None)
        if norm is not None:
            patches, pooled = norm(patches), norm(pooled)
        height, width = token_grid(net, images.shape[2], images.shape[3])
        return Features(patches.transpose(1, 2).unflatten(2, (height, width)), pooled)

    def _poolings(self) -> list[TokenPooling]:
        """The ways to pool that the network has what it takes for."""
        net: Any = self.net
        pool = getattr(net, "attn_pool", None)
        whole = hasattr(pool, "latent") and getattr(pool, "pos_embed", None) is None  # a cell alone has no position
        found: list[TokenPooling] = ["mean"]
        if getattr(net, "cls_token", None) is not None:
            found.insert(0, "class")
        if whole and getattr(pool, "out_features", self.channels) == self.channels:
            found.append("attention")
        return found


def prefix_tokens(net: nn.Module) -> int:
    """Number of tokens before those of the patches: class, distillation, registers."""
    return int(getattr(net, "num_prefix_tokens", 0) or 0)


def token_grid(net: nn.Module, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patch tokens for an image of this size, pixels; (0, 0) when the model does not tell."""
    patches: Any = getattr(net, "patch_embed", None)
    if hasattr(patches, "dynamic_feat_size"):
        rows, columns = patches.dynamic_feat_size((height, width))
    else:
        rows, columns = getattr(patches, "grid_size", None) or (0, 0)
    return int(rows), int(columns)


def patch_side(net: nn.Module) -> int:
    """Side in pixels of the patches of a network of any image size, of which sizes have to be multiples; else 1.

    1 also where images are padded to whole patches, and for networks that are built for one size.
    """
    patches: Any = getattr(net, "patch_embed", None)
    if not getattr(net, "dynamic_img_size", False) or getattr(patches, "dynamic_img_pad", False):
        return 1
    ratio = getattr(patches, "feat_ratio", None)
    return int(ratio(as_scalar=True)) if callable(ratio) else 1


def check_patches(net: nn.Module, name: str, size: int) -> None:
    """Raise ValueError where an image of `size` x `size` pixels cannot be cut into the patches of a network."""
    side = patch_side(net)
    if size % side or size < side:
        near = sorted({max(side, size // side * side), (size // side + 1) * side})
        raise ValueError(
            f"preprocess: {name!r} cuts images into patches of {side} x {side} pixels and needs a multiple of {side}, "
            f"got size {size}; use {' or '.join(map(str, near))}"
        )
