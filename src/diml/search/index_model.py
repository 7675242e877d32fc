"""The embedder of an index: a model by name or path, and a whitening that is kept with the index itself.

A whitening is fitted without labels on images of the index when it is created. Only the projection is kept, in float16,
which it is rounded to before it is used: the network comes from where its name says, and the fingerprint of the whole
is checked.

Legend: C channels of the network, D of the head.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from diml.checksums import sealed
from diml.models import Embedder, EmbedderConfig, load_embedder
from diml.models.heads import WhitenHead
from diml.models.zoo import is_backbone
from diml.search.store import IndexConfig, Store, kept_document

#: Name of the text that is kept with an index whose head was fitted for it.
HEAD_FILE: Final = "head.json"
#: Channels of a whitening of an index, where nothing else is said: a tenth of what most networks have.
INDEX_DIM: Final = 128
_FORMAT: Final = 1
_REMEDY: Final = "restore it from a copy, or build the index again"
#: Settings that a model of any kind is loaded with again.
_SHARED: Final = ("grid", "preprocess", "pooled", "precision", "rollout_blocks")


def is_unfitted(embedder: Embedder) -> bool:
    """Whether an embedder has a whitening that has not been fitted."""
    return isinstance(embedder.head, WhitenHead) and not embedder.head.fitted


@torch.no_grad()
def head_text(embedder: Embedder, images: int) -> str:
    """The whitening of an embedder as text, which `use_head` reads; it is rounded to float16 in place.

    Args:
        embedder: with a head "whiten" that is fitted.
        images: how many images it was fitted on.
    """
    assert isinstance(embedder.head, WhitenHead)
    weight = embedder.head.weight
    coded = weight.detach().cpu().to(torch.float16)
    weight.copy_(coded)
    plain = {
        "format": _FORMAT,
        "head": "whiten",
        "shape": list(coded.shape),
        "weight": base64.b64encode(coded.numpy().astype("<f2").tobytes()).decode(),
        "images": images,
    }
    return json.dumps(sealed(plain))


@torch.no_grad()
def use_head(embedder: Embedder, text: str) -> None:
    """Give an embedder with a head "whiten" the projection that `head_text` wrote, in place.

    Raises:
        ValueError: the text is damaged, or of another network.
    """
    head = embedder.head
    assert isinstance(head, WhitenHead)
    found = _read(text)
    rows, channels = found["shape"]
    if channels != embedder.backbone.channels:
        raise ValueError(
            f"index: its head is for a network of {channels} channels, got one of {embedder.backbone.channels}; open "
            "the index with the model that it was built with"
        )
    values = np.frombuffer(found["bytes"], "<f2").reshape(rows, channels).astype(np.float32)
    head.weight = torch.from_numpy(values).to(head.weight)
    head.dim = rows
    embedder.config = dataclasses.replace(embedder.config, dim=rows)


def _read(text: str) -> dict[str, Any]:
    """The values of `head_text`, checked; `bytes` are those of the weight."""
    found = kept_document(text, HEAD_FILE, _FORMAT, _REMEDY)
    what = f"index: {HEAD_FILE}"
    try:
        coded = base64.b64decode(found["weight"], validate=True)
        rows, channels = found["shape"]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"{what}: not what was written: {error}; {_REMEDY}") from error
    if len(coded) != 2 * rows * channels:
        raise ValueError(f"{what}: need {2 * rows * channels} bytes, got {len(coded)}; {_REMEDY}")
    return {**found, "bytes": coded}


def load_index_embedder(store: Store, model: str | None = None) -> Embedder:
    """Load the embedder of an index.

    Args:
        store: the index.
        model: where the model is now, if it has moved; as the index records it when omitted.

    Raises:
        FileNotFoundError: the model is missing.
        ValueError: it is another one, or the head that is kept with the index is missing or damaged.
    """
    config = store.config
    settings: dict[str, Any] = dict(config.model)
    source = settings["name_or_path"] if model is None else model
    wanted = EmbedderConfig.from_dict(settings["config"])
    changes: dict[str, Any] = {name: getattr(wanted, name) for name in _SHARED}
    if is_backbone(source):
        changes |= {name: getattr(wanted, name) for name in ("head", "dim", "token_pooling", "factory_options")}
        changes["weights_file"] = settings.get("weights_file") if model is None else None
    try:
        embedder = load_embedder(source, architecture=settings["architecture"], **changes)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"model: the index was built with {source}, which is missing ({error}); give its present path"
        ) from error
    if is_unfitted(embedder):
        use_head(embedder, kept_head(store))
    require_embedder(embedder, config)
    return embedder


def kept_head(store: Store) -> str:
    """The text of the head that is kept with an index.

    Raises:
        ValueError: there is none.
    """
    text = store.read_text(HEAD_FILE)
    if text is None:
        raise ValueError(f"index: the head that was fitted for it, {HEAD_FILE}, is missing; {_REMEDY}")
    return text


def require_embedder(embedder: Embedder, config: IndexConfig) -> None:
    """Raise ValueError for another embedder than that of the index, whose vectors would not be comparable."""
    found = embedder.fingerprint()
    if found != config.embedder:
        built = config.model.get("name_or_path")
        raise ValueError(
            f"model: the index was built with another embedder ({built}, fingerprint {config.embedder[:12]}..., got "
            f"{found[:12]}...); its settings or weights differ; use that one, or build a new index"
        )


def head_faults(store: Store) -> list[str]:
    """What is wrong with the head that is kept with an index, one line; empty for an index without one of its own."""
    model = store.config.model
    text = store.read_text(HEAD_FILE)
    whitened = (model.get("config") or {}).get("head") == "whiten"
    if text is None and not (whitened and is_backbone(str(model.get("name_or_path")))):
        return []
    try:
        _read(kept_head(store))
    except ValueError as error:
        return [str(error)]
    return []


def head_facts(store: Store) -> Mapping[str, Any]:
    """Plain values: name and channels of the head of an index, and on how many images it was fitted for it, or None."""
    config = store.config.model.get("config") or {}
    text = store.read_text(HEAD_FILE)
    images = None if text is None else _read(text)["images"]
    return {"name": config.get("head"), "dim": store.config.dim, "fitted_on": images}
