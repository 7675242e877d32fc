"""Checkpoints: folders of safetensors and JSON, replaced atomically, from which a run resumes bit-identically.

A checkpoint is the folder of an embedder (`load_embedder` takes it) with two more files: `training.safetensors` with
all other tensors, and `state.json` with everything else. `state.json` holds the checksums of the others.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from diml.checksums import check_file, file_sha256, sealed, unsealed
from diml.documents import read_json
from diml.files import atomic_file, flush
from diml.models import Embedder

LAST: Final = "last.ckpt"
BEST: Final = "best.ckpt"
MODEL_FILES: Final = ("model.safetensors", "embedder.json")

_TENSORS: Final = "training.safetensors"
_STATE: Final = "state.json"
_FORMAT: Final = 2
#: Files of which `state.json` holds the sha256; `embedder.json` holds that of the weights.
_VOUCHED: Final = (_TENSORS, MODEL_FILES[1])
_REMEDY: Final = (
    f"copy the checkpoint from a backup, or put a copy of {BEST} in the place of {LAST} to continue from the best epoch"
)


def write_checkpoint(path: Path, embedder: Embedder, state: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one at `path`, which is kept until the new one is complete.

    A folder cannot replace another one in a single operation. So the new one is written and flushed under a name that
    nothing reads, renamed to a name that marks it as complete, and then swapped with the old one. If the process is
    killed, the disk holds the old or the new checkpoint completely; `settle` restores its name.

    Args:
        path: folder of the checkpoint.
        embedder: the network.
        state: dicts, lists and tuples of tensors, arrays and plain values.

    Raises:
        TypeError: the state holds something else.
    """
    settle(path)
    partial = _beside(path, "partial")
    partial.mkdir(parents=True)
    complete = partial / "complete"
    embedder.save(complete)
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, "state", tensors)
    save_file(tensors, complete / _TENSORS)
    checksums = {name: file_sha256(complete / name) for name in _VOUCHED}
    document = sealed({"format": _FORMAT, "files": checksums, "state": plain})
    (complete / _STATE).write_text(json.dumps(document), encoding="utf-8")
    for tensor_file in complete.glob("*.safetensors"):
        shutil.copymode(complete / _STATE, tensor_file)  # safetensors makes them private
    for written in (*complete.iterdir(), complete):
        flush(written)
    complete.rename(_beside(path, "new"))
    flush(path.parent)
    settle(path)


def settle(path: Path) -> bool:
    """Complete or undo the work of a writer that was killed; returns whether there is a checkpoint at `path` now."""
    new, old = _beside(path, "new"), _beside(path, "old")
    shutil.rmtree(_beside(path, "partial"), ignore_errors=True)
    if new.exists():
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        flush(path.parent)
    elif old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return path.exists()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state that was given to `write_checkpoint`, with tensors on the CPU; `load_embedder` has the network.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it has another format, or is damaged.
    """
    if not (path / _STATE).is_file():
        raise FileNotFoundError(f"checkpoint: {path} has no {_STATE}; give a folder such as RUN/{LAST}")
    try:
        document = read_json(path / _STATE)
        _check_format(document["format"])
        document = unsealed(document, _STATE, "it is damaged")
        for name in _VOUCHED:
            check_file(path / name, document["files"][name], "it is damaged")
        state: dict[str, Any] = _with_tensors(document["state"], load_file(path / _TENSORS))
    except (ValueError, KeyError, TypeError, OSError, SafetensorError, RecursionError) as error:
        raise ValueError(f"checkpoint: {path} cannot be read ({error}); {_REMEDY}") from error
    return state


def _check_format(found: Any) -> None:
    if found != _FORMAT:
        raise ValueError(f"need format {_FORMAT}, got {found!r}; if a newer version of diml wrote it, update")


def publish_model(checkpoint: Path, folder: Path) -> None:
    """Copy the embedder of a checkpoint to `folder`; during the copy the folder holds no embedder."""
    weights, settings = MODEL_FILES
    (folder / settings).unlink(missing_ok=True)  # old settings with new weights would be a wrong embedder
    for name in (weights, settings):
        with atomic_file(folder / name) as temporary:
            shutil.copyfile(checkpoint / name, temporary)


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Name the checkpoint and the remedy in every error of the block, which puts its values in their places.

    Libraries raise almost any type for a value of the wrong kind.

    Raises:
        ValueError: the block raised an error; one for lack of memory stays as it is.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"checkpoint: {path} does not fit this run ({reason[:300]}); {_REMEDY}") from error


def check_like(given: Any, own: Any, name: str) -> None:
    """Raise unless values of a checkpoint are of the kinds that the run has in the same places.

    Args:
        given: values of `read_checkpoint`.
        own: what the run would write there now; None where a number may follow.
        name: of the values, for the error.

    Raises:
        ValueError: a name is missing or is one too many, or a value is of another type, dtype or number of axes.
    """
    if own is None:
        fits = given is None or isinstance(given, int | float)
    elif isinstance(own, Tensor):
        fits = isinstance(given, Tensor) and given.dtype == own.dtype and given.ndim == own.ndim
    elif isinstance(own, Mapping):
        fits = isinstance(given, Mapping) and set(given) == set(own)
    elif isinstance(own, float):
        fits = isinstance(given, int | float) and not isinstance(given, bool)
    else:
        fits = type(given) is type(own)
    if isinstance(own, list | tuple):
        fits = fits and len(given) == len(own)
    if isinstance(own, np.ndarray):
        fits = fits and given.dtype == own.dtype and given.shape == own.shape
    if not fits:
        raise ValueError(f"{name}: need values of the kind {_told(own)}, got {_told(given)}")
    if isinstance(own, Mapping):
        for key, value in own.items():
            check_like(given[key], value, f"{name}.{key}")
    elif isinstance(own, list | tuple):
        for place, value in enumerate(own):
            check_like(given[place], value, f"{name}.{place}")


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"dict of {', '.join(map(str, value))}" if value else "empty dict"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of {value.dtype} {tuple(value.shape)}"
    return "None or a number" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state in the memory layout that it would have without interruption.

    In another layout, kernels may take another path and round differently.

    Raises:
        ValueError: the state is not one of this optimizer with these parameters.
    """
    _check_optimizer(optimizer, state)
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _check_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    own = optimizer.state_dict()
    check_like({**state, "state": None}, {**own, "state": None}, "optimizer")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = state["state"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in own["param_groups"]]:
        raise ValueError("optimizer: its groups hold other parameters")
    if not isinstance(entries, Mapping) or not set(entries) <= set(range(len(parameters))):
        raise ValueError(
            f"optimizer.state: need one entry for each of {len(parameters)} parameters, got {_told(entries)}"
        )
    for place, entry in entries.items():
        first = next(iter(entries.values()))
        if not isinstance(entry, Mapping) or set(entry) != set(first):
            raise ValueError(f"optimizer.state.{place}: need {_told(first)}, got {_told(entry)}")
        for name, value in entry.items():
            if isinstance(value, Tensor):
                fits = value.is_floating_point() and value.shape in (parameters[place].shape, (), (1,))
            else:
                fits = isinstance(value, type(first[name])) and (value is None or isinstance(value, int | float))
            if not fits:
                raise ValueError(f"optimizer.state.{place}.{name}: does not fit its parameter, got {_told(value)}")


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return the part that JSON can hold; tensors are moved to `tensors` and replaced by references."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value.copy())
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):  # keys may be numbers, which JSON would convert to strings
        return {"dict": [[key, _without_tensors(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_without_tensors(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name}: a checkpoint holds tensors, arrays and plain values, got {type(value).__name__}")


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dict":
        return {key: _with_tensors(item, tensors) for key, item in content}
    items = [_with_tensors(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")
