"""Embeddings cached on disk under a hash of what they depend on: the embedder and the content of every image."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diml.checksums import DamagedError, sealed, unsealed
from diml.data.image_sets import DatasetImages, ImageSet
from diml.data.images import BadImage, BadImageError, ImageLike, image_name, load_image, opened_file
from diml.documents import parse_json
from diml.files import atomic_file
from diml.matching import Regions
from diml.models.embedder import Embedded, Embedder, OnBadImage
from diml.models.inputs import as_images
from diml.progress import ShowProgress

_FORMAT: Final = "diml-embeddings-2"

Found = TypeVar("Found")


def embed_cached(
    embedder: Embedder,
    images: Sequence[ImageLike] | ImageSet,
    *,
    cache_dir: str | os.PathLike[str],
    batch_size: int = 64,
    workers: int | None = None,
    progress: ShowProgress = False,
    on_bad_image: OnBadImage = "fail",
) -> Embedded:
    """Embed images, or return what the same embedder gave for the same image contents before.

    The key of a cache file is the embedder's fingerprint, the precision it computes in, and the contents of all images
    in order: the bytes of files, whatever their names and places, and the pixels of images in memory. Cache files are
    written atomically with a checksum; a damaged one is computed again, and a folder that cannot be written to is done
    without, both with a warning.

    Args:
        embedder: the embedder.
        images: paths or images in memory, or an `ImageSet`.
        cache_dir: folder of cache files, created when missing; one file per set of images, safe to delete.
        batch_size, workers, progress, on_bad_image: as in `Embedder.embed_checked`.

    Returns:
        Embedded, with the regions on the embedder's device.

    Raises:
        BadImageError, TypeError, ValueError: as `Embedder.embed_checked`, whether cached or not.

    Example:
        >>> embed_cached(embedder, ["a.jpg"], cache_dir="runs/cache").regions  # doctest: +SKIP
    """
    listed = as_images(images)
    what = f"{_FORMAT} {embedder.fingerprint()} {embedder.autocast_type()}"
    file = cache_file(cache_dir, what, listed)
    found = read_if_whole(file, lambda: _read(file, listed, embedder.device))
    if found is not None:
        if found.bad and on_bad_image == "fail":
            raise BadImageError(found.bad[0].path, found.bad[0].reason)
        return found
    made = embedder.embed_checked(
        listed, batch_size=batch_size, workers=workers, progress=progress, on_bad_image=on_bad_image
    )
    _write(file, made)
    return made


def cache_file(folder: str | os.PathLike[str], what: str, images: Sequence[ImageLike]) -> Path:
    """The cache file of a result that depends on `what`, in words, and on the contents of these images in order."""
    return Path(folder) / f"{_key(what, images)}.safetensors"


def read_if_whole(file: Path, read: Callable[[], Found]) -> Found | None:
    """What `read` makes of a cache file; None if there is none, or, with a warning, if it cannot be used."""
    try:
        return read()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        reason = f"cannot be read ({error.strerror})"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = f"is damaged ({error})"
    warnings.warn(f"cache file {file} {reason}; it is computed again", stacklevel=3)
    return None


def _key(what: str, images: Sequence[ImageLike]) -> str:
    digest = hashlib.sha256(what.encode())
    for index in range(len(images)):
        try:
            digest.update(_content(images[index]))
        except (OSError, ValueError) as error:
            digest.update(f"unreadable: {type(error).__name__}".encode())
    return digest.hexdigest()[:40]


def _content(image: ImageLike) -> bytes:
    """A hash of what an image's embedding depends on."""
    if isinstance(image, str | os.PathLike):
        with opened_file(image) as file:  # never a named pipe, which would wait for ever
            return hashlib.file_digest(file, "sha256").digest()
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    pixels = load_image(image)
    return hashlib.sha256(f"pixels {pixels.size} ".encode() + pixels.tobytes()).digest()


def _write(file: Path, embedded: Embedded) -> None:
    regions = embedded.regions
    grid = None if regions.grid is None else list(regions.grid)
    tensors = {"dense": regions.dense, "pooled": regions.pooled, "kept": embedded.kept}
    if regions.masses is not None:
        tensors["masses"] = regions.masses
    reasons = [image.reason for image in embedded.bad]
    write_tensors(file, _FORMAT, tensors, {"grid": grid, "massless": regions.massless, "reasons": reasons})


def write_tensors(file: Path, form: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and plain values atomically with a checksum; where that is not possible, warn and go on."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    document = sealed({**about, "tensors_sha256": _of_tensors(plain)})
    try:
        with atomic_file(file) as scratch:
            save_file(plain, scratch, metadata={"format": form, "about": json.dumps(document)})
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"the embeddings cannot be cached in {file.parent} ({error}), so the next run computes them again; set "
            "DIML_CACHE to a folder that is writable, on a disk with free space",
            stacklevel=4,
        )


def read_tensors(file: Path, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` has written.

    Raises:
        ValueError, OSError, SafetensorError, KeyError, TypeError: there is nothing, or it is damaged.
    """
    with safe_open(file, framework="pt") as opened:
        metadata: Any = opened.metadata() or {}
        if metadata.get("format") != form:
            raise ValueError(f"format {metadata.get('format')!r} instead of {form!r}")
        about = unsealed(parse_json(metadata["about"], "about"), "about", "it can be deleted")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if _of_tensors(tensors) != about["tensors_sha256"]:
        raise DamagedError("its tensors are not those that were written")
    return tensors, about


def _read(file: Path, images: Sequence[ImageLike], device: torch.device) -> Embedded:
    tensors, about = read_tensors(file, _FORMAT)
    dense, pooled, kept = (tensors[name] for name in ("dense", "pooled", "kept"))
    present = set(kept.tolist())
    left_out = [index for index in range(len(images)) if index not in present]
    if len(present) != len(dense) or len(left_out) != len(about["reasons"]):
        raise ValueError(f"{len(dense)} images and {len(about['reasons'])} bad ones for {len(images)} images")
    grid = None if about["grid"] is None else (about["grid"][0], about["grid"][1])
    reasons = zip(left_out, about["reasons"], strict=True)
    bad = tuple(BadImage(_name(images, index), reason) for index, reason in reasons)
    regions = Regions(dense, pooled, grid, masses=tensors.get("masses"), massless=str(about["massless"]))
    return Embedded(regions.to(device), kept, bad)


def _of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of names, types, shapes and values of contiguous tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name(images: Sequence[ImageLike], index: int) -> str:
    if isinstance(images, DatasetImages):
        return images.image_name(index)
    return image_name(images[index], index)
