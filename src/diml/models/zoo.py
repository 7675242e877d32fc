"""Backbones by name: any timm model with spatial features, "googlenet" and "bninception"."""

from __future__ import annotations

import difflib
from typing import Any, get_args

import torch
from torch import Tensor, nn

from diml.data.transforms import Preprocess
from diml.models.backbones import (
    TOKEN_POOLINGS,
    Backbone,
    MapBackbone,
    TokenBackbone,
    TokenPooling,
    prefix_tokens,
    token_grid,
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
    """Return a network that gives maps, in evaluation mode.

    Args:
        name: of a timm model, "googlenet" (torchvision) or "bninception" (pretrainedmodels).
        pretrained: with its ImageNet weights, see `diml.models.pretrained`; otherwise with random ones.
        image_size: for models of a fixed input size (most transformers): build it for this one, pixels.
        token_pooling: for plain transformers, "class" or "mean"; None follows the model's own head.

    Raises:
        ValueError: unknown name, a model without spatial features, or an option that it cannot have.
        ModuleNotFoundError: the optional package of "bninception" is missing.
        WeightsError: the weights cannot be had.

    Example:
        >>> build_backbone("resnet18", pretrained=False)(torch.randn(1, 3, 224, 224)).maps.shape
        torch.Size([1, 512, 7, 7])
    """
    check_name(name)
    if token_pooling is not None and token_pooling not in TOKEN_POOLINGS:
        raise ValueError(f"token_pooling: need one of {', '.join(TOKEN_POOLINGS)}, got {token_pooling!r}")
    backbone = _inception(name, pretrained) or _timm_backbone(name, pretrained, image_size, token_pooling)
    if token_pooling is not None and not isinstance(backbone, TokenBackbone):
        raise ValueError(f"token_pooling: {name!r} gives maps, not tokens; leave the option away")
    return backbone.eval()


def default_preprocess(name: str) -> Preprocess:
    """The preprocessing that goes with a backbone's weights.

    Mean and deviation are the model's own, ImageNet's where none are known. The short side goes to 256 pixels and the
    centre 224 are cut out, bilinear, as the authors evaluate; models of a fixed input size take that one, and the
    short side in the same proportion.
    """
    check_name(name)
    config = _config(name)
    if config is None:
        return Preprocess()
    size = int(config.input_size[-1]) if config.fixed_input_size else 224
    return Preprocess(size=size, resize=round(size * 256 / 224), mean=tuple(config.mean), std=tuple(config.std))


def is_backbone(name: str) -> bool:
    """Whether there is a backbone of this name."""
    import timm

    return name in INCEPTIONS or bool(timm.is_model(name))


def check_name(name: str) -> None:
    """ValueError with the nearest known names when there is no backbone of this name."""
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
    features = _try(net, size, name)
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
    """What timm knows of a model's weights and input; None for models of others."""
    import timm

    if name in INCEPTIONS:
        return None
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise ValueError(f"backbone: no weights {name!r}; known: {known}") from error


@torch.no_grad()
def _try(net: nn.Module, size: int, name: str) -> Tensor:
    """The network's features of one made-up image, to see of what kind they are; (1, ...)."""
    run: Any = getattr(net, "forward_features", None)
    try:
        features = run(torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size))
    except (TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"backbone: {name!r} gives no features of {size} x {size} pixels ({error})") from error
    if isinstance(features, Tensor):
        return features
    kind = type(features).__name__
    raise ValueError(f"backbone: {name!r} gives a {kind} instead of one feature map; choose another model")
