"""Named backbones: any timm model with spatial features, "googlenet" and "bninception"."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from torch import Tensor

from diml.data.transforms import Preprocess
from diml.models.backbones import (
    TOKEN_POOLINGS,
    Backbone,
    MapBackbone,
    TokenBackbone,
    TokenPooling,
    prefix_tokens,
    token_grid,
    try_network,
)
from diml.models.inception import Inception, build_inception
from diml.models.pretrained import timm_network

INCEPTIONS: tuple[Inception, ...] = get_args(Inception)


def build_backbone(
    name: str,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    token_pooling: TokenPooling | None = None,
) -> Backbone:
    """Return a network with spatial features, in evaluation mode.

    Args:
        name: of a timm model, "googlenet" (torchvision) or "bninception" (pretrainedmodels).
        pretrained: with its pretrained weights, see `diml.models.pretrained`; otherwise with random ones.
        image_size: for models of a fixed input size (most transformers), the size to build it for, pixels.
        token_pooling: for plain transformers, "class" or "mean"; None follows the model's own head.

    Raises:
        ValueError: unknown name, a model without spatial features, or an option that does not apply to it.
        MissingExtraError: the optional package of "bninception" is missing.
        WeightsError: the weights are neither cached nor reachable.

    Example:
        >>> build_backbone("resnet18", pretrained=False)(torch.randn(1, 3, 224, 224)).maps.shape
        torch.Size([1, 512, 7, 7])
    """
    check_name(name)
    if token_pooling is not None and token_pooling not in TOKEN_POOLINGS:
        raise ValueError(f"token_pooling: need one of {', '.join(TOKEN_POOLINGS)}, got {token_pooling!r}")
    backbone = _inception(name, pretrained) or _timm_backbone(name, pretrained, image_size, token_pooling)
    if token_pooling is not None and not isinstance(backbone, TokenBackbone):
        raise ValueError(f"token_pooling: {name!r} gives maps, not tokens; omit the option")
    return backbone.eval()


def default_preprocess(name: str) -> Preprocess:
    """The preprocessing that a backbone's weights were trained with.

    Mean and standard deviation are the model's own, ImageNet's where none are known. The short side is resized to 256
    pixels, bilinearly, and the central 224 x 224 are cropped, as in the authors' evaluation; models of a fixed input
    size use that size, with the short side in the same proportion.
    """
    check_name(name)
    config = _config(name)
    if config is None:
        return Preprocess()
    size = int(config.input_size[-1]) if config.fixed_input_size else 224
    return Preprocess(size=size, resize=round(size * 256 / 224), mean=tuple(config.mean), std=tuple(config.std))


def is_backbone(name: str) -> bool:
    """Whether a backbone has this name."""
    import timm

    return name in INCEPTIONS or bool(timm.is_model(name))


def check_name(name: str) -> None:
    """Raise ValueError with the nearest known names when no backbone has this name."""
    import timm

    if not is_backbone(name):
        near = difflib.get_close_matches(name, [*timm.list_models(), *INCEPTIONS], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"backbone: no model {name!r}; {hint}Need a name of timm.list_models(), "
            f"{' or '.join(map(repr, INCEPTIONS))}"
        )


def _inception(name: str, pretrained: bool) -> Backbone | None:
    known = next((inception for inception in INCEPTIONS if inception == name), None)
    return None if known is None else build_inception(known, pretrained=pretrained)


def _timm_backbone(name: str, pretrained: bool, image_size: int | None, token_pooling: TokenPooling | None) -> Backbone:
    config = _config(name)
    usual = 224 if config is None else int(config.input_size[-1])
    fixed = config is not None and bool(config.fixed_input_size)
    size = usual if image_size is None else image_size
    net = timm_network(name, pretrained=pretrained, image_size=size if fixed and size != usual else None).eval()
    features = try_network(net, getattr(net, "forward_features", net), size, name)
    if not isinstance(features, Tensor):
        kind = type(features).__name__
        raise ValueError(  # noqa: TRY004
            f"backbone: {name!r} gives a {kind} instead of one feature map; choose another model"
        )
    only_size = size if fixed else None
    if features.ndim == 4:
        return MapBackbone(net, features, only_size)
    rows, columns = token_grid(net, size, size)
    if features.ndim != 3 or rows * columns == 0 or features.shape[1] != prefix_tokens(net) + rows * columns:
        raise ValueError(
            f"backbone: {name!r} has no spatial features (they have shape {tuple(features.shape)}); choose a "
            "convolutional network or a plain vision transformer, such as 'resnet50' or 'vit_small_patch16_224'"
        )
    return TokenBackbone(net, features, only_size, token_pooling)


def _config(name: str) -> Any:
    """What timm knows about a model's weights and input; None for models from other packages."""
    import timm

    if name in INCEPTIONS:
        return None
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise ValueError(f"backbone: no weights {name!r}; known: {known}") from error
