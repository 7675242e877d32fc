"""Every way to an embedder: by name, from a module, a saved folder, or a checkpoint of the authors."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from diml.data.transforms import Preprocess
from diml.matching import Matcher
from diml.models.backbones import Backbone, Precision, TokenPooling
from diml.models.config import EmbedderConfig, PooledFrom
from diml.models.embedder import Embedder
from diml.models.folder import SETTINGS_FILE, WEIGHTS_FILE, read_settings, read_weights, with_scorer
from diml.models.heads import HeadName, build_head
from diml.models.modules import (
    Factory,
    Layout,
    build_module,
    find_factory,
    import_path,
    is_import_path,
    plain_options,
    wrap_module,
)
from diml.models.pretrained import load_exactly
from diml.models.published import published_folder
from diml.models.released import read_released
from diml.models.zoo import build_backbone, default_preprocess, find_model, is_name

#: D of a head that is trained, and of one that is fitted (docs/experiments/whitening.md says why).
LINEAR_DIM: Final = 128
WHITEN_DIM: Final = 512


def load_embedder(
    model: str | os.PathLike[str] | nn.Module,
    *,
    grid: int | Literal["default"] | None = "default",
    head: HeadName | None = None,
    dim: int | None = None,
    pretrained: bool = True,
    architecture: str | None = None,
    preprocess: Preprocess | None = None,
    size: int | None = None,
    pooled: PooledFrom | None = None,
    token_pooling: TokenPooling | None = None,
    precision: Precision | None = None,
    matcher: Matcher | None = None,
    layout: Layout | None = None,
    prefix_tokens: int | None = None,
    factory: Factory | None = None,
    factory_options: Mapping[str, Any] | None = None,
    weights_file: str | os.PathLike[str] | None = None,
    rollout_blocks: int | None = None,
) -> Embedder:
    """Return an embedder, in evaluation mode, on the CPU; that of a module on the module's device.

    Args:
        model: one of
            - a backbone's name: any timm model with spatial features, "googlenet" or "bninception";
              "mobilenetv2_100" and "tf_efficientnet_lite0" need no model hub, only the package index;
              "hf-hub:OWNER/NAME" for a timm model on the Hugging Face hub, "local-dir:FOLDER" for a copy of its files
              (also of those of a saved embedder);
            - a network of your own, an `nn.Module` that takes normalised images (N, 3, H, W);
            - a folder written by `Embedder.save` (`./resnet50` where the folder is called like a model);
            - "hf-hub:OWNER/NAME" or "hf-hub:OWNER/NAME@REVISION" for such a folder on the Hugging Face hub, as
              `Embedder.push_to_hub` writes it;
            - a checkpoint file of the authors (`best.pth`), with `architecture`.
        grid: G for G x G regions, 1 to 14; None for the backbone's own cells. "default": 4, or as saved.
        head: "identity", "linear" (random until trained) or "whiten" (to be fitted: `Embedder.fit_head`). Default:
            "identity", or as saved.
        dim: D of the heads "linear" and "whiten". Default 128 for "linear"; for "whiten" 512, or the channels of the
            backbone where it has fewer; or as saved.
        pretrained: for names: with pretrained weights, else with random ones.
        architecture: the backbone in a checkpoint of the authors, such as "resnet50".
        preprocess: from image to network input. Default: the model's own mean and standard deviation at 224 pixels
            (see `default_preprocess`), those of ImageNet for your own module, or as saved.
        size: side of the network's input in pixels, in place of that of the preprocessing; the short side of an image
            is resized in the same proportion as before.
        pooled: "backbone" or "grid_mean", see `EmbedderConfig`. Default "backbone", or as saved.
        token_pooling: for networks of tokens, "class", "mean" or "attention"; default the model's own, or as saved.
        precision: "auto", "float32", "bfloat16" or "float16", see `EmbedderConfig`. Default "auto", or as saved.
        matcher: settings of the comparison that the embedder carries. Default `Matcher()`, or as saved.
        layout: for your own module, the layout of its output, or that of its `forward_features` where it has that
            method: "NCHW", "NHWC" or "NTC" (tokens). Default: inferred from a trial run.
        prefix_tokens: for your own module of tokens, how many (class token, registers) come before those of the cells.
            Default: inferred.
        factory: what builds your own module when a saved folder is loaded: its class, or a function annotated
            `-> nn.Module`, or 'package.module:name' of either. Default: the module's class. With a folder: replaces
            the saved one, after the code has moved; of a model on the hub it has to be given, as nothing is imported
            because such a model says so.
        factory_options: keyword arguments of the factory, or for a name those of `timm.create_model`, values that JSON
            can hold; they should build the bare architecture, as its weights are in the folder.
        weights_file: for names: a file with the weights, `.safetensors` or of `torch.save` (read without executing
            anything in it), instead of the pretrained ones; no hub is needed. Published files are renamed as timm does.
        rollout_blocks: for vision transformers, how many of the last blocks attention is rolled out over for the masses
            of regions, see `EmbedderConfig`. Default 4, or as saved.

    Raises:
        TypeError: `model` is something else.
        ValueError: unknown name (the nearest are named), an option out of its range or without use for this kind of
            model, a module without usable feature map, a damaged folder, a hostile or foreign checkpoint, or a folder
            whose own network cannot be imported.
        FileNotFoundError: no such path.
        WeightsError, AssetError: pretrained weights are not available; the message lists the remedies.
        HubError: the hub does not have the model, or not for you.

    Example:
        >>> embedder = load_embedder("resnet18", head="linear", dim=64, pretrained=False)
        >>> embedder(torch.randn(2, 3, 224, 224)).dense.shape
        torch.Size([2, 16, 64])
        >>> embedder = load_embedder(MyNet(width=64), factory_options={"width": 64})  # doctest: +SKIP
    """
    changes: dict[str, Any] = {"preprocess": preprocess, "pooled": pooled, "precision": precision, "matcher": matcher}
    changes["rollout_blocks"] = rollout_blocks
    changes = {key: value for key, value in changes.items() if value is not None}
    if grid != "default":
        changes["grid"] = grid
    building = {"factory": factory, "factory_options": factory_options}
    features = {"layout": layout, "prefix_tokens": prefix_tokens}
    new = {"head": head, "dim": dim, "token_pooling": token_pooling}
    if isinstance(model, nn.Module):
        _refuse("a module", architecture=architecture, weights_file=weights_file)
        changes = _sized(changes, Preprocess(), size)
        return _from_module(model, changes, **new, **features, **building)  # type: ignore[arg-type]
    path = _as_path(model)
    published = None if path is not None else published_folder(os.fspath(model))
    if path is None and published is None:
        _refuse("a backbone's name", architecture=architecture, **features, factory=factory)
        changes = _sized(changes, default_preprocess(os.fspath(model)), size)
        made = {"weights_file": weights_file, "factory_options": factory_options}
        return _by_name(os.fspath(model), changes, pretrained=pretrained, **new, **made)  # type: ignore[arg-type]
    if path is not None and path.is_file():
        _refuse("a checkpoint", **new, **features, **building, weights_file=weights_file)
        if architecture is None:
            raise ValueError(
                f"architecture: need the name of the backbone in {path}, such as architecture='resnet50'; an embedder "
                "saved by diml is a folder, not a file"
            )
        return read_released(path, architecture, **_sized(changes, default_preprocess(architecture), size))
    _refuse("a saved embedder", **new, **features, architecture=architecture, weights_file=weights_file)
    saved = _from_folder(published or Path(model), factory, factory_options, trusted=published is None)
    changes = changes if size is None else _sized(changes, saved.preprocess, size)
    return saved.with_settings(**changes) if changes else saved


def _dim(head: HeadName | None, dim: int | None, channels: int = WHITEN_DIM) -> int:
    """The D that was asked for, else the usual one; of a whitening at most the channels of the backbone."""
    if dim is None:
        return min(WHITEN_DIM, channels) if head == "whiten" else LINEAR_DIM
    return dim


def _sized(changes: dict[str, Any], own: Preprocess, size: int | None) -> dict[str, Any]:
    """The changes with a preprocessing: the given one, else the model's own, at the given size."""
    preprocess: Preprocess = changes.get("preprocess", own)
    if size is not None and size != preprocess.size:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size: need pixels, an integer of at least 1, got {size!r}")
        short = None if preprocess.resize is None else round(preprocess.resize * size / preprocess.size)
        preprocess = dataclasses.replace(preprocess, size=size, resize=short)
    return changes | {"preprocess": preprocess}


def _by_name(
    name: str,
    changes: dict[str, Any],
    *,
    head: HeadName | None,
    dim: int | None,
    pretrained: bool,
    token_pooling: TokenPooling | None,
    weights_file: str | os.PathLike[str] | None,
    factory_options: Mapping[str, Any] | None,
) -> Embedder:
    head = head or "identity"
    model = find_model(name)  # a name of the hub is saved as the architecture and options that it stands for
    options = {**model.options, **(factory_options or {})} or None
    # Settings first: a mistake in them should not cost a download.
    config = EmbedderConfig(
        backbone=model.architecture,
        head=head,
        dim=_dim(head, dim),
        token_pooling=token_pooling,
        factory_options=options,
        **changes,
    )
    backbone = build_backbone(
        name,
        pretrained=pretrained,
        image_size=config.preprocess.size,
        token_pooling=token_pooling,
        weights_file=None if weights_file is None else Path(weights_file).expanduser(),
        options=options,
    )
    return Embedder(backbone, build_head(head, backbone.channels, _dim(head, dim, backbone.channels)), config).eval()


def _from_module(
    module: nn.Module,
    changes: dict[str, Any],
    *,
    head: HeadName | None,
    dim: int | None,
    token_pooling: TokenPooling | None,
    layout: Layout | None,
    prefix_tokens: int | None,
    factory: Factory | None,
    factory_options: Mapping[str, Any] | None,
) -> Embedder:
    config = EmbedderConfig(
        backbone=import_path(module) if factory is None else _importable(factory),
        head=head or "identity",
        dim=_dim(head, dim),
        token_pooling=token_pooling,
        layout=layout,
        prefix_tokens=prefix_tokens,
        factory_options=factory_options,
        **changes,
    )
    return _embedder_of(module, config, dim).eval()


def _embedder_of(module: nn.Module, config: EmbedderConfig, dim: int | None) -> Embedder:
    """The embedder of a user's module, with a new head of `dim` channels (None: the usual number) on its device."""
    backbone = wrap_module(
        module,
        config.backbone,
        size=config.preprocess.size,
        layout=config.layout,
        prefix=config.prefix_tokens,
        token_pooling=config.token_pooling,
    )
    channels = _dim(config.head, dim, backbone.channels)
    embedder = Embedder(backbone, build_head(config.head, backbone.channels, channels), config)
    embedder.head.to(embedder.device)
    return embedder


def _from_folder(
    folder: Path, factory: Factory | None, factory_options: Mapping[str, Any] | None, *, trusted: bool
) -> Embedder:
    """The embedder of a folder, its outputs bitwise equal to those of the saved one.

    Args:
        folder: where it was saved.
        factory, factory_options: as of `load_embedder`.
        trusted: whether code of the user may be imported because the folder names it.

    Raises:
        FileNotFoundError: the folder, or one of its two files, is missing.
        ValueError: settings or weights are damaged, unknown, or do not fit each other, or the code of the user's module
            is missing.
    """
    config = with_scorer(folder, read_settings(folder))
    if is_import_path(config.backbone):
        if factory is None and not trusted:
            raise ValueError(
                f"factory: the network of this model is built by {config.backbone}, code of its author, which is not "
                f"imported because a model on the hub names it; give factory={config.backbone!r} where you trust it"
            )
        if factory is not None:
            config = dataclasses.replace(config, backbone=_importable(factory))
        if factory_options is not None:
            config = dataclasses.replace(config, factory_options=plain_options(factory_options))
        embedder = _embedder_of(build_module(config.backbone, config.factory_options).eval(), config, config.dim)
    else:
        _refuse(f"a saved {config.backbone!r}", factory=factory, factory_options=factory_options)
        options = config.factory_options
        size = config.preprocess.size
        backbone: Backbone = build_backbone(
            config.backbone, pretrained=False, image_size=size, token_pooling=config.token_pooling, options=options
        )
        embedder = Embedder(backbone, build_head(config.head, backbone.channels, config.dim), config)
    if embedder.dim != config.dim:
        raise ValueError(f"{folder / SETTINGS_FILE}: need dim {embedder.dim} for this backbone, got {config.dim}")
    load_exactly(embedder, read_weights(folder), str(folder / WEIGHTS_FILE))
    return embedder.eval()


def _importable(factory: Factory) -> str:
    """The import path of a factory, checked: a mistake should not show only when the embedder is saved."""
    path = import_path(factory)
    if not is_import_path(path):
        raise ValueError(f"factory: need 'package.module:name', got {path!r}")
    find_factory(path)
    return path


def _as_path(model: str | os.PathLike[str]) -> Path | None:
    """The path that is meant; None for a name. A model's name stands for the model, whatever folders exist."""
    try:
        text = os.fspath(model)
    except TypeError:
        raise TypeError(f"model: need a name, a path or an nn.Module, got {type(model).__name__}") from None
    if isinstance(model, str) and is_name(text):
        return None
    path = Path(text).expanduser()
    if path.exists():
        return path
    if not isinstance(model, str) or path.suffix in (".pth", ".pt", ".safetensors") or len(path.parts) > 1:
        raise FileNotFoundError(f"model: {text} does not exist (nor is it the name of a model)")
    return None


def _refuse(what: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)}: of no use with {what}; omit the option")
