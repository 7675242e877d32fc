"""Weights from a file of one's own for a named network: safetensors, or torch's without anything executed in it.

timm brings the names and shapes of most published files into those of its networks; what it would leave random or drop
is an error here.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diml.lean_imports import import_timm

#: Where files of training runs keep the weights, the averaged ones first.
_INSIDE: Final = ("state_dict_ema", "model_ema", "state_dict", "model")
#: What wrappers of networks put before the names of weights.
_WRAPPERS: Final = ("module.", "_orig_mod.")
#: Names of the file of an embedder of diml begin with this.
_OF_EMBEDDER: Final = "backbone.net."


def read_state(path: Path) -> dict[str, Any]:
    """Read a file of `torch.save` without executing anything in it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not such a file, is damaged, or contains more than tensors and plain values.
    """
    try:
        with warnings.catch_warnings(), _plain_arguments():
            warnings.simplefilter("ignore")  # about unusual pickles, which end in an error below anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error: ")[-1].split("\n")[0]
        raise ValueError(
            f"{path}: refused, it is damaged or contains more than tensors and plain values ({reason}); nothing in it "
            "was run. If you trust it, load it yourself and save only the tensors: torch.save({'model': state}, ...)"
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises whatever its instructions lead to
        raise ValueError(f"{path}: not a complete file of torch.save ({error}); fetch or copy it again") from error
    if isinstance(state, dict):
        return state
    raise ValueError(f"{path}: need a dictionary of tensors, got {type(state).__name__}")


def read_weights_file(path: Path) -> dict[str, Any]:
    """The weights in a file under their own names: the tensors of `.safetensors`, else of `torch.save`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, no weights in it, those of a saved embedder, or integers where weights belong.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"weights_file: {path} does not exist, or is a folder; name a .safetensors or .pth file"
        )
    if path.suffix == ".safetensors":
        try:
            state: dict[str, Any] = dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights_file: {path} is damaged ({error}); fetch or copy it again") from error
    else:
        state = read_state(path)
    for name in _INSIDE:
        if isinstance(state.get(name), Mapping):
            state = dict(state[name])
            break
    for wrapper in _WRAPPERS * 2:
        if state and all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    if not any(isinstance(value, Tensor | Mapping) for value in state.values()):
        raise ValueError(f"weights_file: {path} contains no tensors; its names: {', '.join(map(str, state)) or 'none'}")
    if any(name.startswith(_OF_EMBEDDER) for name in state):
        raise ValueError(f"weights_file: {path} is part of a saved embedder; load its folder, {path.parent}, instead")
    wrong = [
        f"{name} {str(value.dtype).removeprefix('torch.')}"
        for name, value in state.items()
        if isinstance(value, Tensor) and name.endswith((".weight", ".bias")) and not value.is_floating_point()
    ]
    if wrong:
        raise ValueError(
            f"weights_file: {path}: need floating-point weights, got {len(wrong)} others ({', '.join(wrong[:3])}); "
            "quantised weights have to be converted first"
        )
    return state


def network_from_file(name: str, options: Mapping[str, Any], path: Path) -> nn.Module:
    """A timm network with the weights of a file, all of them; only a classifier in it is left out.

    Files of timm, or saved from a network of timm, have its names. Those of others (DINOv2, DINOv3, CLIP, SigLIP, MAE,
    DeiT and more) are renamed, and position embeddings resampled, by the filter that timm has for the model.

    Args:
        name: of a timm model.
        options: keyword arguments of `timm.create_model`.
        path: `.safetensors`, or a file of `torch.save`.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not fit; random weights are never left.
    """
    timm = import_timm()

    state = read_weights_file(path)
    config: Any = timm.get_pretrained_cfg(name)
    classifiers = tuple(f"{part}." for part in _as_names(getattr(config, "classifier", None)))
    plain = {key: value for key, value in state.items() if not (classifiers and key.startswith(classifiers))}
    try:
        net = _filled(name, dict(options), plain, {"classifier": None})
    except Exception as error:  # a filter can fail in any way on what it does not know
        with contextlib.suppress(Exception):
            # Names of others: the file must then be whole, with the classifier for which timm has a name.
            whole = _filled(name, {key: value for key, value in options.items() if key != "num_classes"}, state, {})
            bare: nn.Module = timm.create_model(name, **options)
            own = whole.state_dict()
            bare.load_state_dict({key: own[key] for key in bare.state_dict()})
            return bare
        what = " ".join(str(error).split())
        what = what.partition("Error(s) in loading state_dict for ")[2] or what
        raise ValueError(
            f"weights_file: {path} does not fit {name!r}: {what[:400]}{' ...' * (len(what) > 400)} Is it another "
            "architecture, or are its network's arguments others (factory_options)?"
        ) from error
    wrong = other_kinds(net.state_dict(), plain)
    if wrong:
        raise ValueError(f"weights_file: {path}: {len(wrong)} weights of another kind ({', '.join(wrong[:3])})")
    return net


def other_kinds(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> list[str]:
    """Weights that are not of the kind that a network has there, floating-point or integer, as one line each."""
    return [
        f"{name} {_dtype(state[name])} instead of {_dtype(value)}"
        for name, value in own.items()
        if name in state and _kind(state[name]) != _kind(value)
    ]


def _filled(name: str, options: dict[str, Any], state: dict[str, Any], changes: dict[str, Any]) -> nn.Module:
    """The network, filled by timm under its strict rule."""
    timm = import_timm()

    overlay = {"state_dict": dict(state), "source": "", "custom_load": False} | changes
    net: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    return net


def _as_names(names: Any) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "float" if value.is_floating_point() else "complex" if value.is_complex() else "integer"


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")


@contextlib.contextmanager
def _plain_arguments() -> Iterator[None]:
    """Allow `argparse.Namespace`, in which training runs keep their arguments: names and values, nothing that runs."""
    allowed: Any = getattr(torch.serialization, "safe_globals", None)  # from torch 2.5
    with allowed([argparse.Namespace]) if allowed else contextlib.nullcontext():
        yield
