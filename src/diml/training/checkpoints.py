"""Checkpoints: folders that are whole or absent, of safetensors and JSON, from which a training goes on to the bit.

A checkpoint is an embedder's folder (`load_embedder` takes it) with two files more: `training.safetensors` with every
other tensor, and `state.json` with everything that is no tensor.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from diml.files import flush, whole_file
from diml.models import Embedder

LAST: Final = "last.ckpt"
BEST: Final = "best.ckpt"
MODEL_FILES: Final = ("model.safetensors", "embedder.json")

_TENSORS: Final = "training.safetensors"
_STATE: Final = "state.json"
_FORMAT: Final = 1


def write_checkpoint(path: Path, embedder: Embedder, state: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one at `path`, which stays until the new one is whole.

    Folders cannot replace each other in one stroke. So the new one is written and flushed under a name that nobody
    reads, renamed to a name that says it is whole, and then the two change places. Killed at any moment, the disk has
    the old or the new one whole; `settle` finds out which and gives it its name back.

    Args:
        path: folder of the checkpoint.
        embedder: the network.
        state: dicts, lists and tuples of tensors, arrays and plain values.
    """
    settle(path)
    partial = _beside(path, "partial")
    partial.mkdir(parents=True)
    whole = partial / "whole"
    embedder.save(whole)
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, "state", tensors)
    save_file(tensors, whole / _TENSORS)
    (whole / _STATE).write_text(json.dumps({"format": _FORMAT, "state": plain}), encoding="utf-8")
    for tensor_file in whole.glob("*.safetensors"):
        shutil.copymode(whole / _STATE, tensor_file)  # safetensors makes them private
    for written in (*whole.iterdir(), whole):
        flush(written)
    whole.rename(_beside(path, "new"))
    flush(path.parent)
    settle(path)


def settle(path: Path) -> bool:
    """Finish or undo what a writer left when it was killed; returns whether there is a checkpoint at `path` now."""
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
    """Return the state that `write_checkpoint` was given, tensors on the CPU; the network is `load_embedder(path)`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of another format, or damaged.
    """
    if not (path / _STATE).is_file():
        raise FileNotFoundError(f"checkpoint: {path} has no {_STATE}; name a folder such as RUN/{LAST}")
    try:
        document = json.loads((path / _STATE).read_text(encoding="utf-8"))
        state: dict[str, Any] = _with_tensors(document["state"], load_file(path / _TENSORS))
        found = document["format"]
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(f"checkpoint: {path} cannot be read ({error}); it is damaged") from error
    if found != _FORMAT:
        raise ValueError(
            f"checkpoint: need format {_FORMAT} in {path}, got {found!r}; a newer diml wrote it? Update diml"
        )
    return state


def publish_model(checkpoint: Path, folder: Path) -> None:
    """Copy the embedder of a checkpoint to `folder`, which then loads as one; in between it has none."""
    weights, settings = MODEL_FILES
    (folder / settings).unlink(missing_ok=True)  # old settings with new weights would be no embedder
    for name in (weights, settings):
        with whole_file(folder / name) as temporary:
            shutil.copyfile(checkpoint / name, temporary)


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Take over an optimizer's state, in the memory layout that it would have without interruption.

    Kernels may take another path, and round otherwise, in another layout.
    """
    optimizer.load_state_dict(dict(state))
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def random_states() -> dict[str, Any]:
    """The states of the global random streams of torch, numpy and Python."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002  # the miners' library draws from it
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set what `random_states` returned; those of GPUs only where there are as many."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate(states["python"])
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return what JSON can hold; tensors go to `tensors`, and a reference to each stays in its place."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value.copy())
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):  # keys may be numbers, which JSON would turn into texts
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
