"""Sources of pretrained weights: offline assets, the hubs of timm and torchvision, else an error with the remedies."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from diml.assets import fetch_asset
from diml.lean_imports import import_timm
from diml.models.weights_file import network_from_file, other_kinds, read_state

#: Backbones whose weights come as an asset, without any hub.
OFFLINE: Final = MappingProxyType({"mobilenetv2_100": "mobilenetv2", "tf_efficientnet_lite0": "efficientnet_lite0"})

#: Layers of the assets' state dicts after the last feature map, by first part of the name.
_CLASSIFIERS: Final = ("classifier", "_fc")
#: Options of `timm.create_model` that are not of the architecture, beside those that begin with `pretrained`.
_NOT_OF_ARCHITECTURES: Final = ("checkpoint_path", "cache_dir", "features_only", "num_classes", "model_name", "device")
#: Modules of timm whose transformers take `dynamic_img_size`.
_ANY_SIZE: Final = ("timm.models.vision_transformer", "timm.models.deit", "timm.models.eva")
#: How long to wait for a host to answer.
_PATIENCE_SECONDS: Final = 8.0


class WeightsError(OSError):
    """Pretrained weights are not available; the message says for which model, why, and what to do."""


def timm_network(
    name: str,
    *,
    pretrained: bool,
    image_size: int | None = None,
    weights_file: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return a timm network without classifier.

    Transformers of `vision_transformer.py`, `deit.py` and `eva.py` in timm are built for images of any size that is a
    multiple of their patches: timm then resamples their position embedding in each call.

    Args:
        name: of a timm model, optionally with the tag of its weights.
        pretrained: with weights: the asset for the names in `OFFLINE`, otherwise timm's own; False: random ones.
        image_size: for other models of a fixed input size: build for this one, pixels.
        weights_file: weights to load instead; see `diml.models.weights_file`.
        options: further keyword arguments of `timm.create_model`.

    Raises:
        ValueError: the model cannot be built for `image_size` or with `options`, or the weights do not fit.
        WeightsError, AssetError: there are no weights, or they are neither cached nor reachable.
    """
    timm = import_timm()

    check_options(name, options)
    wanted: dict[str, Any] = dict(options or {}) | {"num_classes": 0}
    if takes_any_size(name):
        wanted.setdefault("dynamic_img_size", True)
    if image_size is not None:
        wanted["img_size"] = image_size
    if weights_file is not None:
        return network_from_file(name, wanted, weights_file)
    if pretrained and name not in OFFLINE:
        wanted |= {"pretrained": True, "pretrained_cfg_overlay": _source(name)}
    try:
        net: nn.Module = timm.create_model(name, **wanted)
    except (TypeError, AssertionError) as error:
        raise_for_options(name, wanted, options, error)
        raise
    except Exception as error:  # hubs raise nearly every type
        if not pretrained:
            raise
        raise no_weights(name, f"fetching or reading them failed: {type(error).__name__}: {error}") from error
    if pretrained and name in OFFLINE:
        path = fetch_asset(OFFLINE[name])
        copy_in_order(net, read_state(path), str(path))
    return net


def check_options(name: str, options: Mapping[str, Any] | None) -> None:
    """Raise ValueError for options of `timm.create_model` that say where weights come from, or give another output.

    Options are read from saved folders and from the hub: a forged one must not make timm read or fetch a file.
    """
    wrong = [key for key in options or {} if key.startswith("pretrained") or key in _NOT_OF_ARCHITECTURES]
    if wrong:
        raise ValueError(f"factory_options: need arguments of the architecture {name!r}, got {', '.join(wrong)}")


def takes_any_size(name: str) -> bool:
    """Whether timm can build this model such that it resamples its position embedding for the image at hand."""
    timm = import_timm()

    return timm.models.model_entrypoint(name).__module__ in _ANY_SIZE


def raise_for_options(
    name: str, wanted: Mapping[str, Any], options: Mapping[str, Any] | None, error: Exception
) -> None:
    """Raise ValueError where an image size or options of the caller may be why a network cannot be built."""
    if "img_size" in wanted and not (options and "img_size" in options):
        raise ValueError(
            f"preprocess: {name!r} cannot be built for {wanted['img_size']} pixels ({error}); omit the size"
        ) from error
    if options:
        raise ValueError(f"factory_options: {name!r} cannot be built with {dict(options)} ({error})") from error


def copy_in_order(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a network with weights that are in its own order but have other names; classifiers are left out.

    Raises:
        ValueError: the number of tensors or a shape differs.
    """
    own = net.state_dict()
    given = {name: value for name, value in state.items() if name.split(".")[0] not in _CLASSIFIERS}
    if len(own) != len(given):
        raise ValueError(f"{source}: need {len(own)} tensors, got {len(given)}")
    for (ours, place), (theirs, value) in zip(own.items(), given.items(), strict=True):
        if place.shape != value.shape:
            raise ValueError(
                f"{source}: {theirs} is of shape {tuple(value.shape)}, need {tuple(place.shape)} for {ours}"
            )
    renamed = dict(zip(own, given.values(), strict=True))
    kinds = other_kinds(own, renamed)
    if kinds:
        raise ValueError(f"{source}: {len(kinds)} weights of another kind ({', '.join(kinds[:3])})")
    net.load_state_dict(renamed)


def load_exactly(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a network with weights under its own names.

    ValueError lists those missing, unexpected, of another shape, or integers where numbers with fractions belong.

    Batch counters of batch normalisation, which files of old torch versions lack, may be missing.
    """
    own = net.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    kinds = other_kinds(own, state)
    found = (("missing", missing), ("unexpected", unknown), ("of another shape", shapes), ("of another kind", kinds))
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for what, names in found if names
    ]
    if problems:
        raise ValueError(f"{source}: these weights do not fit: {'; '.join(problems)}; is it another architecture?")
    net.load_state_dict(state, strict=False)


def fetch_state(name: str, url: str) -> dict[str, Any]:
    """Return the weights at an address, from torch's cache when they were fetched before.

    Raises:
        WeightsError: not cached and not reachable, or damaged.
    """
    path = _torch_cache(url)
    if not path.exists():
        reason = unreachable(url)
        if reason:
            raise no_weights(name, f"they are not cached, and {reason}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digits = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=False)
        except (OSError, RuntimeError) as error:
            raise no_weights(name, f"fetching {url} failed: {error}") from error
    return read_state(path)


def _source(name: str) -> dict[str, str]:
    """Where timm is to take the weights of `name` from: {} leaves it to timm, {"file": ...} is a cached copy.

    Without a network, the hub's client retries for about a minute, so the connection is tested first.
    """
    timm = import_timm()

    config: Any = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise no_weights(name, "timm has none for it")
    if config.file:
        return {}
    if not config.hf_hub_id:
        url = config.url[0] if isinstance(config.url, tuple) else config.url
        reason = None if _torch_cache(url).exists() else unreachable(url)
        if reason:
            raise no_weights(name, f"they are not cached, and {reason}")
        return {}
    import huggingface_hub

    reason = unreachable(huggingface_hub.constants.ENDPOINT)
    if reason is None:
        return {}
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for filename in names:
        cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
        if isinstance(cached, str) and not config.custom_load:
            return {"file": cached}
    raise no_weights(name, f"they are not cached, and {reason}")


def _torch_cache(url: str) -> Path:
    """Where torch keeps a file fetched from an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def unreachable(url: str) -> str | None:
    """Why the host of an address cannot be reached; None when it can, or when a proxy may reach it."""
    if urllib.request.getproxies():
        return None
    address = urlparse(url)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    outcome: list[str | None] = []

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE_SECONDS).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(f"{host} cannot be reached ({error.strerror or error})")

    # In a thread, because name resolution has no timeout of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    return outcome[0] if outcome else f"{host} did not answer within {_PATIENCE_SECONDS:.0f} s"


def no_weights(name: str, reason: str) -> WeightsError:
    """The error for missing weights: what to download from where, and the other remedies."""
    source = download_address(name)
    fetch = ""
    if source:
        fetch = (
            f"on a machine with a network, download {source}, copy it here and give it as weights_file=FILE (on the "
        )
        fetch += "command line --weights-file FILE); or use "
    return WeightsError(
        f"backbone {name!r}: no pretrained weights: {reason}. Remedies: {fetch}a network connection; a model that "
        f"needs no hub ({', '.join(map(repr, OFFLINE))}); the folder of an embedder saved elsewhere; the authors' "
        "checkpoint with architecture=...; or pretrained=False for random weights, to be trained"
    )


def download_address(name: str) -> str:
    """Where the pretrained weights of a timm name can be downloaded by hand; empty where nobody knows."""
    timm = import_timm()

    repository, file = "", ""
    if name.startswith("hf-hub:"):
        repository = name.partition(":")[2]
    elif timm.is_model(name.split(".")[0]):
        config: Any = timm.get_pretrained_cfg(name)
        if config is None:
            return ""
        if not config.hf_hub_id:
            return str(config.url[0] if isinstance(config.url, tuple) else config.url or "")
        repository, file = config.hf_hub_id, config.hf_hub_filename or ""
    if not repository:
        return ""
    path, _, revision = repository.partition("@")
    return f"https://huggingface.co/{path}/resolve/{revision or 'main'}/{file or 'model.safetensors'}"
