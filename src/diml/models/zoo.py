"""Named backbones: any timm model with spatial features, "googlenet" and "bninception"."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from diml.data.transforms import Preprocess
from diml.extending import need_registered, registered_names
from diml.lean_imports import import_timm
from diml.models.backbones import (
    TOKEN_POOLINGS,
    Backbone,
    MapBackbone,
    TokenBackbone,
    TokenPooling,
    check_patches,
    prefix_tokens,
    token_grid,
    try_network,
)
from diml.models.hub import SourceModel, is_source, source_model, source_weights
from diml.models.inception import Inception, build_inception
from diml.models.model_search import names_meant
from diml.models.modules import wrap_module
from diml.models.pretrained import takes_any_size, timm_network
from diml.models.published import is_published

INCEPTIONS: tuple[Inception, ...] = get_args(Inception)


def build_backbone(
    name: str,
    *,
    pretrained: bool = True,
    image_size: int | None = None,
    token_pooling: TokenPooling | None = None,
    weights_file: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Return a network with spatial features, in evaluation mode.

    Args:
        name: of a timm model, "googlenet" (torchvision), "bninception" (pretrainedmodels), a registered one (see
            `diml.extending`); or `hf-hub:OWNER/NAME` or `local-dir:FOLDER`, see `diml.models.hub`.
        pretrained: with its pretrained weights, see `diml.models.pretrained`; otherwise with random ones.
        image_size: the size of images it is tried with, and that models of a fixed input size are built for, pixels.
        token_pooling: for plain transformers, "class", "mean" or "attention"; None follows the model's own head.
        weights_file: file of the weights, instead of pretrained ones; see `diml.models.weights_file`.
        options: further keyword arguments of `timm.create_model`, or of a registered backbone.

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
    if name in INCEPTIONS and options:
        raise ValueError(f"factory_options: {name!r} takes none, got {dict(options)}")
    if _is_own(name):
        return _own_backbone(name, pretrained, image_size, token_pooling, weights_file, options)
    if is_source(name):
        model = source_model(name)
        if weights_file is None and pretrained:
            weights_file = source_weights(name)
        name, options = model.architecture, {**model.options, **(options or {})}
    backbone = _inception(name, pretrained, weights_file)
    if backbone is None:
        backbone = _timm_backbone(name, pretrained, image_size, token_pooling, weights_file, options)
    if token_pooling is not None and not isinstance(backbone, TokenBackbone):
        raise ValueError(f"token_pooling: {name!r} gives maps, not tokens; omit the option")
    return backbone.eval()


def default_preprocess(name: str) -> Preprocess:
    """The preprocessing that a backbone's weights were trained with.

    Mean and standard deviation are the model's own, ImageNet's where none are known. The short side is resized to 256
    pixels, bilinearly, and the central 224 x 224 are cropped, as in the authors' evaluation; models of a fixed input
    size, or that do not run at 224 pixels, use their own, with the short side in the same proportion.
    """
    check_name(name)
    model = find_model(name)
    config, own = _config(model.architecture), model.settings
    if config is None:
        return Preprocess()
    usual = int((own.get("input_size") or config.input_size)[-1])
    smallest = int((config.min_input_size or config.input_size)[-1])
    size = usual if config.fixed_input_size or (config.min_input_size and smallest > 224) else 224
    mean, std = (tuple(own.get(key) or getattr(config, key)) for key in ("mean", "std"))
    return Preprocess(size=size, resize=round(size * 256 / 224), mean=mean, std=std)


def find_model(name: str) -> SourceModel:
    """The architecture, arguments and settings that a backbone's name stands for."""
    return source_model(name) if is_source(name) else SourceModel(architecture=name)


def is_name(name: str) -> bool:
    """Whether a text is a name and no path; those of the hub are not looked up."""
    timm = import_timm()

    return name in INCEPTIONS or is_source(name) or bool(timm.is_model(name)) or name in registered_names("backbones")


def is_backbone(name: str) -> bool:
    """Whether a name stands for a backbone, which has no head; a name of the hub may also be that of a saved embedder.

    Raises:
        WeightsError, HubError: as `published_folder`, for a name of the hub.
    """
    return is_name(name) and not is_published(name)


def check_name(name: str) -> None:
    """Raise ValueError with the names that may be meant when no backbone has this name."""
    if not is_name(name):
        own = registered_names("backbones")
        near = names_meant(name, (*INCEPTIONS, *own))
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        owner, _, last = name.partition("/")
        if owner and last:
            hint += f"A timm model on the Hugging Face hub is 'hf-hub:{name}'. "
        raise ValueError(
            f"backbone: no model {name!r}; {hint}Need a name of timm.list_models(), "
            f"{' or '.join(map(repr, INCEPTIONS))}, or a registered one ({', '.join(own) or 'none is'})"
        )


def _is_own(name: str) -> bool:
    """Whether a name is that of a registered backbone; built-in names come first."""
    builtin = name in INCEPTIONS or is_source(name) or import_timm().is_model(name)
    return not builtin and name in registered_names("backbones")


def _own_backbone(
    name: str,
    pretrained: bool,
    image_size: int | None,
    token_pooling: TokenPooling | None,
    weights_file: Path | None,
    options: Mapping[str, Any] | None,
) -> Backbone:
    """The network that a registered function builds."""
    if weights_file is not None:
        raise ValueError(
            f"weights_file: {name!r} is a registered backbone, which loads its own weights; omit the option"
        )
    net = need_registered("backbones", name)(pretrained=pretrained, **(options or {}))
    if not isinstance(net, nn.Module):
        raise TypeError(f"backbone: need an nn.Module from {name!r}, got {type(net).__name__}")
    return wrap_module(net.eval(), name, size=image_size or 224, token_pooling=token_pooling).eval()


def _inception(name: str, pretrained: bool, weights_file: Path | None) -> Backbone | None:
    known = next((inception for inception in INCEPTIONS if inception == name), None)
    return None if known is None else build_inception(known, pretrained=pretrained, weights_file=weights_file)


def _timm_backbone(
    name: str,
    pretrained: bool,
    image_size: int | None,
    token_pooling: TokenPooling | None,
    weights_file: Path | None,
    options: Mapping[str, Any] | None,
) -> Backbone:
    config = _config(name)
    usual = 224 if config is None else int(config.input_size[-1])
    fixed = config is not None and bool(config.fixed_input_size) and not takes_any_size(name)
    size = usual if image_size is None else image_size
    net = timm_network(
        name,
        pretrained=pretrained,
        image_size=size if fixed and size != usual else None,
        weights_file=weights_file,
        options=options,
    ).eval()
    check_patches(net, name, size)
    features = try_network(net, getattr(net, "forward_features", net), size, name, usual=usual)
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
    timm = import_timm()

    if name in INCEPTIONS or _is_own(name):
        return None
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise ValueError(f"backbone: no weights {name!r}; known: {known}") from error
