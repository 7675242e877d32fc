"""Embeddings kept on disk, found again by what they depend on: the embedder and the content of every image."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diml.data.images import BadImage, BadImageError
from diml.files import whole_file
from diml.matching import Regions
from diml.models.embedder import Embedded, Embedder, OnBadImage
from diml.progress import ShowProgress

_FORMAT: Final = "diml-embeddings-1"


def embed_cached(
    embedder: Embedder,
    paths: Sequence[str | os.PathLike[str]],
    *,
    cache_dir: str | os.PathLike[str],
    batch_size: int = 64,
    workers: int | None = None,
    progress: ShowProgress = False,
    on_bad_image: OnBadImage = "fail",
) -> Embedded:
    """Embed image files, or return what was embedded before with the same embedder from the same contents.

    The cache is found by the embedder's fingerprint, the precision it computes in, and the sha256 of every file in
    order; where the files lie and how they are called does not matter. It is written whole or not at all. A damaged
    cache file is made anew, with a warning.

    Args:
        embedder: what to embed with.
        paths: image files.
        cache_dir: folder of cache files, made when missing; a file a set of images, safe to delete.
        batch_size, workers, progress, on_bad_image: as in `Embedder.embed_checked`.

    Returns:
        Embedded, with the regions on the embedder's device.

    Raises:
        BadImageError, ValueError: as `Embedder.embed_checked`, whether cached or not.

    Example:
        >>> embed_cached(embedder, ["a.jpg"], cache_dir="runs/cache").regions  # doctest: +SKIP
    """
    if isinstance(paths, str | bytes) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise TypeError("paths: need a list of paths, got something else; embedder.embed takes images in memory")
    names = [os.fspath(path) for path in paths]
    file = Path(cache_dir) / f"{_key(embedder, names)}.safetensors"
    if file.exists():
        try:
            found = _read(file, names, embedder.device)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"cache file {file} is damaged ({error}); it is made anew", stacklevel=2)
        else:
            if found.bad and on_bad_image == "fail":
                raise BadImageError(found.bad[0].path, found.bad[0].reason)
            return found
    made = embedder.embed_checked(
        names, batch_size=batch_size, workers=workers, progress=progress, on_bad_image=on_bad_image
    )
    _write(file, made)
    return made


def _key(embedder: Embedder, names: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {embedder.fingerprint()} {embedder.autocast_type()}".encode())
    for name in names:
        try:
            with Path(name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except (OSError, ValueError) as error:
            digest.update(f"unreadable: {type(error).__name__}".encode())
    return digest.hexdigest()[:40]


def _write(file: Path, embedded: Embedded) -> None:
    regions = embedded.regions
    grid = None if regions.grid is None else list(regions.grid)
    about = {"grid": grid, "reasons": [image.reason for image in embedded.bad]}
    tensors = {"dense": regions.dense, "pooled": regions.pooled, "kept": embedded.kept}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(file) as scratch:
        save_file(plain, scratch, metadata={"format": _FORMAT, "about": json.dumps(about)})


def _read(file: Path, names: Sequence[str], device: torch.device) -> Embedded:
    with safe_open(file, framework="pt") as opened:
        metadata: Any = opened.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')!r} instead of {_FORMAT!r}")
        about = json.loads(metadata["about"])
        dense, pooled, kept = (opened.get_tensor(name) for name in ("dense", "pooled", "kept"))
    present = set(kept.tolist())
    left_out = [name for index, name in enumerate(names) if index not in present]
    if len(present) != len(dense) or len(left_out) != len(about["reasons"]):
        raise ValueError(f"{len(dense)} images and {len(about['reasons'])} bad ones for {len(names)} images")
    grid = None if about["grid"] is None else (about["grid"][0], about["grid"][1])
    bad = tuple(BadImage(name, reason) for name, reason in zip(left_out, about["reasons"], strict=True))
    return Embedded(Regions(dense, pooled, grid).to(device), kept, bad)
