"""Sources of pretrained weights: offline assets, the hubs of timm and torchvision, else an error with the remedies."""

from __future__ import annotations

import pickle
import socket
import threading
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from diml.assets import fetch_asset

#: Backbones whose weights come as an asset, without any hub.
OFFLINE: Final = MappingProxyType({"mobilenetv2_100": "mobilenetv2", "tf_efficientnet_lite0": "efficientnet_lite0"})

#: Layers of the assets' state dicts after the last feature map, by first part of the name.
_CLASSIFIERS: Final = ("classifier", "_fc")
#: How long to wait for a host to answer.
_PATIENCE_SECONDS: Final = 8.0


class WeightsError(OSError):
    """Pretrained weights are not available; the message says for which model, why, and what to do."""


def timm_network(name: str, *, pretrained: bool, image_size: int | None = None) -> nn.Module:
    """Return a timm network without classifier.

    Args:
        name: of a timm model, optionally with the tag of its weights.
        pretrained: with weights: the asset for the names in `OFFLINE`, otherwise timm's own; False: random ones.
        image_size: for models of a fixed input size: build for this one, pixels.

    Raises:
        ValueError: the model cannot be built for `image_size`.
        WeightsError, AssetError: there are no weights, or they are neither cached nor reachable.
    """
    import timm

    options: dict[str, Any] = {"num_classes": 0} | ({} if image_size is None else {"img_size": image_size})
    if pretrained and name not in OFFLINE:
        options |= {"pretrained": True, "pretrained_cfg_overlay": _source(name)}
    try:
        net: nn.Module = timm.create_model(name, **options)
    except (TypeError, AssertionError) as error:
        if image_size is None:
            raise
        raise ValueError(
            f"preprocess: {name!r} cannot be built for {image_size} pixels ({error}); omit the size"
        ) from error
    except Exception as error:  # hubs raise nearly every type
        if not pretrained:
            raise
        raise _no_weights(name, f"fetching or reading them failed: {type(error).__name__}: {error}") from error
    if pretrained and name in OFFLINE:
        path = fetch_asset(OFFLINE[name])
        copy_in_order(net, read_state(path), str(path))
    return net


def read_state(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` without executing anything in it.

    Raises:
        ValueError: it is not such a file, is damaged, or contains more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickles, which end in an error below anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error: ")[-1].split("\n")[0]
        raise ValueError(
            f"{path}: refused, it is damaged or contains more than tensors and plain values ({reason}); nothing in it "
            "was run. If you trust it, load it yourself and save only the tensors: torch.save({'model': state}, ...)"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a complete file of torch.save ({error}); fetch or copy it again") from error
    if isinstance(state, dict):
        return state
    raise ValueError(f"{path}: need a dictionary of tensors, got {type(state).__name__}")


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
    net.load_state_dict(dict(zip(own, given.values(), strict=True)))


def load_exactly(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Fill a network with weights under its own names; ValueError lists those missing, unexpected or of another shape.

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
    found = (("missing", missing), ("unexpected", unknown), ("of another shape", shapes))
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
        reason = _unreachable(url)
        if reason:
            raise _no_weights(name, f"they are not cached, and {reason}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digits = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=False)
        except (OSError, RuntimeError) as error:
            raise _no_weights(name, f"fetching {url} failed: {error}") from error
    return read_state(path)


def _source(name: str) -> dict[str, str]:
    """Where timm is to take the weights of `name` from: {} leaves it to timm, {"file": ...} is a cached copy.

    Without a network, the hub's client retries for about a minute, so the connection is tested first.
    """
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise _no_weights(name, "timm has none for it")
    if config.file:
        return {}
    if not config.hf_hub_id:
        url = config.url[0] if isinstance(config.url, tuple) else config.url
        reason = None if _torch_cache(url).exists() else _unreachable(url)
        if reason:
            raise _no_weights(name, f"they are not cached, and {reason}")
        return {}
    import huggingface_hub

    reason = _unreachable(huggingface_hub.constants.ENDPOINT)
    if reason is None:
        return {}
    names = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for filename in names:
        cached = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, filename)
        if isinstance(cached, str) and not config.custom_load:
            return {"file": cached}
    raise _no_weights(name, f"they are not cached, and {reason}")


def _torch_cache(url: str) -> Path:
    """Where torch keeps a file fetched from an address."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def _unreachable(url: str) -> str | None:
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


def _no_weights(name: str, reason: str) -> WeightsError:
    return WeightsError(
        f"backbone {name!r}: no pretrained weights: {reason}. Remedies: a network connection; a model that needs "
        f"no hub ({', '.join(map(repr, OFFLINE))}); the folder of an embedder saved elsewhere; the authors' "
        "checkpoint with architecture=...; or pretrained=False for random weights, to be trained"
    )
