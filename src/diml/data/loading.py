"""Batches of images for embedding: in order, by worker processes when wanted, no image lost in silence."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from diml.data.images import BadImage, BadImageError, ImageLike, image_name, load_image

Decoded = tuple[int, torch.Tensor | BadImage]


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """Some of the images, decoded.

    Attributes:
        images: (B, 3, H, W), float32, normalised.
        indices: (B,), int64: which images of the sequence these are, rising.
        bad: Those of this batch that could not be used; B + len(bad) images were read, and B may be 0.
    """

    images: torch.Tensor
    indices: torch.Tensor
    bad: tuple[BadImage, ...]


def iterate_batches(
    images: Sequence[ImageLike],
    preprocess: Callable[[Image.Image], torch.Tensor],
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> Iterator[LoadedBatch]:
    """Decode and preprocess images batch by batch, in their order.

    Args:
        images: N images, see `ImageLike`.
        preprocess: From an RGB image to a tensor (3, H, W) of one shape for all, such as a `Preprocess`.
        batch_size: Images read per batch, at least 1.
        workers: Processes that decode; 0 decodes in this one. Workers start afresh rather than by a bare fork,
            so that threads and GPU state of this process do no harm; a script that uses them needs the usual
            `if __name__ == "__main__":`. Images in memory (tensors, PIL) are always decoded here, as sending
            them to a worker costs more than it saves.
        on_bad_image: `fail` raises at the first one; `skip` reports them in `LoadedBatch.bad`.

    Yields:
        ceil(N / batch_size) batches; every index stands in exactly one of them, or its image in `bad`.

    Raises:
        BadImageError: With `fail`, for a image that cannot be used, a missing file included.
        ValueError: `batch_size`, `workers` or `on_bad_image` out of its range.

    Example:
        >>> batches = iterate_batches([Image.new("RGB", (9, 9))], Preprocess(size=8, resize=8))  # doctest: +SKIP
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more processes, got {workers}")
    if on_bad_image not in ("fail", "skip"):
        raise ValueError(f"on_bad_image: expected 'fail' or 'skip', got {on_bad_image!r}")
    return _batches(images, preprocess, batch_size, workers, fail=on_bad_image == "fail")


def _batches(
    images: Sequence[ImageLike],
    preprocess: Callable[[Image.Image], torch.Tensor],
    batch_size: int,
    workers: int,
    *,
    fail: bool,
) -> Iterator[LoadedBatch]:
    if not all(isinstance(image, str | os.PathLike | bytes) for image in images):
        workers = 0
    workers = min(workers, -(-len(images) // batch_size))
    loader: DataLoader[Decoded] = DataLoader(
        ImagesByIndex(images, preprocess),
        batch_size=batch_size,
        shuffle=False,
        num_workers=workers,
        collate_fn=Collate(preprocess),
        # A generator of its own: the loader draws a seed, and the global stream is the caller's.
        generator=torch.Generator(),
        multiprocessing_context=start_method() if workers else None,
    )
    batch: LoadedBatch
    for batch in loader:
        if fail and batch.bad:
            # Raised here rather than in the worker, whose errors come out wrapped in a traceback of text.
            raise BadImageError(batch.bad[0].path, batch.bad[0].reason)
        yield batch


def start_method() -> str:
    """How worker processes start: never by a plain fork, which copies the threads' locks."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class ImagesByIndex(Dataset[Decoded]):
    """Images decoded and prepared by index, (index, tensor) or (index, what is bad about it)."""

    def __init__(self, images: Sequence[ImageLike], preprocess: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Decoded:
        image = self.images[index]
        name = image_name(image, index)
        try:
            return index, self.preprocess(load_image(image, name=name))
        except BadImageError as error:
            return index, BadImage(error.path, error.reason)
        except FileNotFoundError:
            return index, BadImage(name, "no such file")
        except MemoryError:
            return index, BadImage(name, "needs more memory than there is")


@dataclass(frozen=True)
class Collate:
    """Put decoded images together to a `LoadedBatch`, the bad ones apart."""

    preprocess: Callable[[Image.Image], torch.Tensor]

    def __call__(self, items: list[Decoded]) -> LoadedBatch:
        """Return the batch of these items."""
        images = [item for _, item in items if isinstance(item, torch.Tensor)]
        indices = [index for index, item in items if isinstance(item, torch.Tensor)]
        bad = tuple(item for _, item in items if isinstance(item, BadImage))
        # An empty batch still tells the shape of a image, so that it can pass through a network like any other.
        stacked = torch.stack(images) if images else self.preprocess(Image.new("RGB", (64, 64)))[None][:0]
        return LoadedBatch(stacked, torch.tensor(indices, dtype=torch.int64), bad)
