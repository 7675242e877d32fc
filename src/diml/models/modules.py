"""The user's own `nn.Module` as a backbone: its layout found by a trial run, its class saved as an import path.

Legend: N images, C channels, H x W cells of the map, T tokens (any prefix tokens, then one per cell, row by row).
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from diml.models.backbones import (
    Backbone,
    Features,
    MapBackbone,
    TokenBackbone,
    TokenPooling,
    inference,
    prefix_tokens,
    token_grid,
    try_network,
)
from diml.models.hub import is_source

Layout = Literal["NCHW", "NHWC", "NTC"]
LAYOUTS: Final = get_args(Layout)

Factory = str | Callable[..., nn.Module]


class ModuleBackbone(Backbone):
    """A module whose output, or that of its `forward_features`, is a feature map or a sequence of tokens.

    Pooled is the mean of the cells, or the first token where `token_pooling` is "class".

    Args:
        net: the module.
        channels: C.
        layout: "NCHW", "NHWC" or "NTC".
        prefix: tokens before those of the cells; 0 for maps.
        token_pooling: "class" or "mean".
    """

    def __init__(
        self, net: nn.Module, channels: int, *, layout: Layout, prefix: int, token_pooling: TokenPooling
    ) -> None:
        super().__init__(net, channels)
        self.layout = layout
        self.prefix = prefix
        self.token_pooling = token_pooling

    def forward(self, images: Tensor) -> Features:
        """Return the features of normalised images (B, 3, H, W)."""
        found = _feature_method(self.net)(images)
        if self.layout == "NTC":
            cells = found[:, self.prefix :].transpose(1, 2)
            maps = cells.unflatten(2, _rows_and_columns(cells.shape[2], images.shape[2], images.shape[3]))
        else:
            maps = found if self.layout == "NCHW" else found.permute(0, 3, 1, 2)
        pooled = found[:, 0] if self.token_pooling == "class" else maps.mean(dim=(2, 3))
        return Features(maps, pooled)


def wrap_module(
    net: nn.Module,
    name: str,
    *,
    size: int,
    layout: Layout | None = None,
    prefix: int | None = None,
    token_pooling: TokenPooling | None = None,
) -> Backbone:
    """Return a module as a backbone; its weights are shared and its mode is not changed.

    A module in timm's style (`forward_features`, `forward_head`) is read like a timm model; a `Backbone` is returned
    unchanged.

    Args:
        net: the module.
        name: what errors call it.
        size: height and width of the trial image, pixels.
        layout: of the features, None to infer it from the trial run: for a square image, the two equal axes are H and
            W; where all are equal, those that grow with the image.
        prefix: tokens before those of the cells, None to infer it: 0 or 1, whichever leaves a square number.
        token_pooling: for tokens; None: the class token where there is one, else the mean.

    Raises:
        ValueError: the module fails on the trial image, its output has no cells, or the layout is ambiguous.
    """
    if isinstance(net, Backbone):
        _refuse_for("a Backbone, which reads its own features", layout, prefix, token_pooling)
        return net
    features = _cells_or_error(try_network(net, _feature_method(net), size, name), name)
    timm_style = callable(getattr(net, "forward_features", None)) and callable(getattr(net, "forward_head", None))
    found = layout or _find_layout(net, tuple(features.shape), size, name)
    if features.ndim != len(found):
        raise ValueError(f"layout: {found!r} has {len(found)} axes, got features of shape {tuple(features.shape)}")
    if found != "NTC":
        _refuse_for(f"a map ({found})", None, prefix, token_pooling)
        if timm_style:
            with inference(net, features.device, None):
                return MapBackbone(net, features, None, channels_last=found == "NHWC")
        channels = features.shape[1 if found == "NCHW" else 3]
        return ModuleBackbone(net, channels, layout=found, prefix=0, token_pooling="mean")
    rows, columns = token_grid(net, size, size)
    if timm_style and prefix is None and 0 < rows * columns == features.shape[1] - prefix_tokens(net):
        return TokenBackbone(net, features, None, token_pooling)
    before = _find_prefix(net, features.shape[1], prefix, name)
    if token_pooling == "class" and not before:
        raise ValueError(f"token_pooling: {name!r} has no class token, got 'class'; use 'mean'")
    pooling: TokenPooling = token_pooling or ("class" if before else "mean")
    return ModuleBackbone(net, features.shape[2], layout="NTC", prefix=before, token_pooling=pooling)


def import_path(factory: Factory | nn.Module) -> str:
    """`module:qualname` of a factory, or of the class of a module; a string is returned unchanged."""
    if isinstance(factory, str):
        return factory
    named: Any = type(factory) if isinstance(factory, nn.Module) else factory
    place, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    if not place or not name:
        raise TypeError(
            f"factory: need a class, a function or 'module:name', got {factory!r}; arguments go to factory_options"
        )
    return f"{place}:{name}"


def is_import_path(name: str) -> bool:
    """Whether a backbone's name is the import path of a user's module."""
    return ":" in name and not is_source(name)


def plain_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Constructor arguments as JSON gives them back; ValueError where they would not survive."""
    given = dict(options or {})
    try:
        plain = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"factory_options: need values that JSON can hold, got {given!r} ({error})") from error
    if plain != given:
        raise ValueError(
            f"factory_options: {given!r} would come back from JSON as {plain!r}; use lists for tuples and text for keys"
        )
    return given


def find_factory(path: str) -> Callable[..., nn.Module]:
    """Import the class or function of an import path.

    Only something that declares to be a network is returned: a subclass of `nn.Module`, or a function annotated to
    return one. A forged `embedder.json` thus cannot name an arbitrary function; importing does run the code of the
    named module, which must already be on the user's import path.

    Raises:
        ValueError: the module is missing or fails, it has no such name, or what is found declares no network.
    """
    place, _, name = path.partition(":")
    for part, what in (("<locals>", "is defined inside a function"), ("<lambda>", "is a lambda")):
        if part in name:
            raise ValueError(f"factory: {path} {what} and cannot be imported; {_REMEDY}")
    if place == "__main__":
        raise ValueError(f"factory: {name} is defined in the running script or notebook, not in a module; {_REMEDY}")
    try:
        found: Any = importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"factory: cannot import {path!r} ({error}); install its package or add its folder to PYTHONPATH, or, "
            "where it has moved, pass factory='module:name' to load_embedder"
        ) from error
    except Exception as error:  # importing runs the user's code, which can raise anything
        raise ValueError(f"factory: importing {place!r} failed ({type(error).__name__}: {error})") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ValueError(f"factory: {place!r} has no {name!r}; {_REMEDY}")
    if not _declares_network(found):
        raise ValueError(
            f"factory: {path} is neither a subclass of nn.Module nor a function annotated to return one; write "
            f"`def {name.rpartition('.')[2]}(...) -> nn.Module:`"
        )
    factory: Callable[..., nn.Module] = found
    return factory


def build_module(path: str, options: Mapping[str, Any] | None) -> nn.Module:
    """Build a network from its import path; the random state of torch is left unchanged.

    Raises:
        ValueError: as `find_factory`, or the call fails or returns something else.
    """
    factory = find_factory(path)
    try:
        with torch.random.fork_rng(devices=[]):
            net: Any = factory(**dict(options or {}))
    except Exception as error:  # the user's code, which can raise anything
        raise ValueError(
            f"factory: {path} called with {dict(options or {})} failed ({type(error).__name__}: {error}); give its "
            "arguments as factory_options={...}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"factory: {path} returned a {type(net).__name__} instead of an nn.Module")  # noqa: TRY004
    return net


def check_rebuilds(backbone: Backbone, path: str, options: Mapping[str, Any] | None, size: int) -> None:
    """Build the network anew with the same weights and compare features, before anything is saved.

    Weights alone do not tell: a constructor argument without influence on their shapes (a stride, an activation)
    would otherwise be lost in silence.

    Raises:
        ValueError: it cannot be imported or built, or gives another network.
    """
    wrapped = type(backbone) in (ModuleBackbone, MapBackbone, TokenBackbone)
    net = backbone.net if wrapped else backbone
    twin = build_module(path, options)
    own, built = net.state_dict(), twin.state_dict()
    shapes = {name: value.shape for name, value in own.items()}
    differing = sorted(name for name in {**own, **built} if name not in built or shapes.get(name) != built[name].shape)
    problem = f"other weights ({len(differing)} differ, such as {differing[0]!r})" if differing else None
    if problem is None:
        twin.load_state_dict(own)
        device = next((value.device for value in own.values()), torch.device("cpu"))
        twin.to(device)
        first, second = (
            try_network(some, some if isinstance(some, Backbone) else _feature_method(some), size, path)
            for some in (net, twin)
        )
        if not _alike(first, second):
            problem = "other features from the same weights"
    if problem:
        raise ValueError(
            f"factory: {path} called with {dict(options or {})} builds a network with {problem}; give the arguments "
            "that it was built with as factory_options={...}, or a function that builds it as factory='module:name'"
        )


_REMEDY: Final = (
    "move it to the top level of a module that can be imported (mynets.py beside the script, say), or pass "
    "factory='module:name', a function there that builds the network, to load_embedder"
)


def _feature_method(net: nn.Module) -> Callable[[Tensor], Any]:
    own: Any = getattr(net, "forward_features", None)
    return own if callable(own) else net


def _refuse_for(what: str, layout: object, prefix: object, token_pooling: object) -> None:
    given = {"layout": layout, "prefix_tokens": prefix, "token_pooling": token_pooling}
    names = [name for name, value in given.items() if value is not None]
    if names:
        raise ValueError(f"{', '.join(names)}: the module is {what}; omit the option")


def _cells_or_error(features: Any, name: str) -> Tensor:
    """The output of the trial run where it can be a map or tokens."""
    needed = "need a map (N, C, H, W) or (N, H, W, C), or tokens (N, T, C)"
    if not isinstance(features, Tensor):
        kind = type(features).__name__
        raise ValueError(  # noqa: TRY004
            f"backbone: {needed} from {name!r}, got a {kind}; wrap the network in a module whose forward returns that "
            "tensor, or subclass diml.models.Backbone"
        )
    shape = tuple(features.shape)
    if features.ndim == 2 or (features.ndim == 4 and math.prod(shape) == max(shape)):
        raise ValueError(
            f"backbone: {needed} from {name!r}, got one pooled vector per image, shape {shape}; pass the network "
            "without its pooling and classifier, such as nn.Sequential(*list(net.children())[:-2]) for a torchvision "
            "ResNet, or give it a method forward_features(images) that returns the map"
        )
    if features.ndim not in (3, 4) or not features.is_floating_point() or shape[0] != 1 or 0 in shape:
        raise ValueError(f"backbone: {needed} of N = 1 image from {name!r}, got shape {shape} of {features.dtype}")
    return features


def _find_layout(net: nn.Module, shape: tuple[int, ...], size: int, name: str) -> Layout:
    """The layout of features of this shape, those of an image of `size` x `size` pixels."""
    if len(shape) == 3:
        return "NTC"
    declared = getattr(net, "output_fmt", None)  # as timm networks have it
    if declared in ("NCHW", "NHWC"):
        return "NHWC" if declared == "NHWC" else "NCHW"
    first, last = shape[2] == shape[3] != shape[1], shape[1] == shape[2] != shape[3]
    if shape[1] == shape[2] == shape[3]:
        with contextlib.suppress(ValueError):  # a network for one image size only
            grown = getattr(try_network(net, _feature_method(net), 2 * size, name), "shape", shape)
            grows = [larger > axis for axis, larger in zip(shape, grown, strict=True)]
            first, last = grows == [False, False, True, True], grows == [False, True, True, False]
    if first or last:
        return "NCHW" if first else "NHWC"
    raise ValueError(
        f"layout: features of {name!r} have shape {shape} for a square image, which can be read in more than one way; "
        "pass layout='NCHW' or layout='NHWC'"
    )


def _find_prefix(net: nn.Module, tokens: int, prefix: int | None, name: str) -> int:
    """Tokens before those of the cells, such that the others form a square."""
    own: Any = getattr(net, "num_prefix_tokens", None)
    candidates = (prefix,) if prefix is not None else (own,) if isinstance(own, int) else (0, 1)
    for count in candidates:
        if 0 <= count < tokens and math.isqrt(tokens - count) ** 2 == tokens - count:
            return count
    raise ValueError(
        f"prefix_tokens: need a square number of tokens (N, T, C) after {' or '.join(map(str, candidates))} prefix "
        f"tokens, got T = {tokens} from {name!r}; pass prefix_tokens=... (class token and registers), or transpose "
        "the output where it is (N, C, T)"
    )


def _rows_and_columns(cells: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens in the proportions of the image."""
    rows = round(math.sqrt(cells * height / width))
    if rows == 0 or cells % rows:
        raise ValueError(f"images: {cells} tokens of {height} x {width} pixels form no grid; use square images")
    return rows, cells // rows


def _declares_network(found: Any) -> bool:
    if inspect.isclass(found):
        return issubclass(found, nn.Module)
    try:
        returned = typing.get_type_hints(found).get("return")
    except (TypeError, NameError, AttributeError):  # nothing with annotations, or names that are unknown at run time
        return False
    return inspect.isclass(returned) and issubclass(returned, nn.Module)


def _alike(first: Any, second: Any) -> bool:
    """Whether two outputs are equal up to rounding."""
    if isinstance(first, Features) and isinstance(second, Features):
        return _alike(first.maps, second.maps) and _alike(first.pooled, second.pooled)
    scale = float(first.abs().max()) if first.numel() else 1.0
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-3, atol=1e-4 * scale)
