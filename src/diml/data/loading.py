"""Batches of pictures for embedding: in order, by worker processes when wanted, no picture lost in silence."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from diml.data.pictures import BadPicture, BadPictureError, Picture, load_picture, picture_name

Decoded = tuple[int, torch.Tensor | BadPicture]


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """Some of the pictures, decoded.

    Attributes:
        images: (B, 3, H, W), float32, normalised.
        indices: (B,), int64: which pictures of the sequence these are, rising.
        bad: Those of this batch that could not be used; B + len(bad) pictures were read, and B may be 0.
    """

    images: torch.Tensor
    indices: torch.Tensor
    bad: tuple[BadPicture, ...]


def iterate_batches(
    pictures: Sequence[Picture],
    preprocess: Callable[[Image.Image], torch.Tensor],
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_bad_picture: Literal["fail", "skip"] = "fail",
) -> Iterator[LoadedBatch]:
    """Decode and preprocess pictures batch by batch, in their order.

    Args:
        pictures: N pictures, see `Picture`.
        preprocess: From an RGB picture to a tensor (3, H, W) of one shape for all, such as a `Preprocess`.
        batch_size: Pictures read per batch, at least 1.
        workers: Processes that decode; 0 decodes in this one. Workers start afresh rather than by a bare fork,
            so that threads and GPU state of this process do no harm; a script that uses them needs the usual
            `if __name__ == "__main__":`. Pictures in memory (tensors, PIL) are always decoded here, as sending
            them to a worker costs more than it saves.
        on_bad_picture: `fail` raises at the first one; `skip` reports them in `LoadedBatch.bad`.

    Yields:
        ceil(N / batch_size) batches; every index stands in exactly one of them, or its picture in `bad`.

    Raises:
        BadPictureError: With `fail`, for a picture that cannot be used, a missing file included.
        ValueError: `batch_size`, `workers` or `on_bad_picture` out of its range.

    Example:
        >>> batches = iterate_batches([Image.new("RGB", (9, 9))], Preprocess(size=8, resize=8))  # doctest: +SKIP
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if workers < 0:
        raise ValueError(f"workers: expected 0 or more processes, got {workers}")
    if on_bad_picture not in ("fail", "skip"):
        raise ValueError(f"on_bad_picture: expected 'fail' or 'skip', got {on_bad_picture!r}")
    return _batches(pictures, preprocess, batch_size, workers, fail=on_bad_picture == "fail")


def _batches(
    pictures: Sequence[Picture],
    preprocess: Callable[[Image.Image], torch.Tensor],
    batch_size: int,
    workers: int,
    *,
    fail: bool,
) -> Iterator[LoadedBatch]:
    if not all(isinstance(picture, str | os.PathLike | bytes) for picture in pictures):
        workers = 0
    workers = min(workers, -(-len(pictures) // batch_size))
    loader: DataLoader[Decoded] = DataLoader(
        PicturesByIndex(pictures, preprocess),
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
            raise BadPictureError(batch.bad[0].path, batch.bad[0].reason)
        yield batch


def start_method() -> str:
    """How worker processes start: never by a plain fork, which copies the threads' locks."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class PicturesByIndex(Dataset[Decoded]):
    """Pictures decoded and prepared by index, (index, tensor) or (index, what is bad about it)."""

    def __init__(self, pictures: Sequence[Picture], preprocess: Callable[[Image.Image], torch.Tensor]) -> None:
        self.pictures = pictures
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Decoded:
        picture = self.pictures[index]
        name = picture_name(picture, index)
        try:
            return index, self.preprocess(load_picture(picture, name=name))
        except BadPictureError as error:
            return index, BadPicture(error.path, error.reason)
        except FileNotFoundError:
            return index, BadPicture(name, "no such file")
        except MemoryError:
            return index, BadPicture(name, "needs more memory than there is")


@dataclass(frozen=True)
class Collate:
    """Put decoded pictures together to a `LoadedBatch`, the bad ones apart."""

    preprocess: Callable[[Image.Image], torch.Tensor]

    def __call__(self, items: list[Decoded]) -> LoadedBatch:
        """Return the batch of these items."""
        images = [item for _, item in items if isinstance(item, torch.Tensor)]
        indices = [index for index, item in items if isinstance(item, torch.Tensor)]
        bad = tuple(item for _, item in items if isinstance(item, BadPicture))
        # An empty batch still tells the shape of a picture, so that it can pass through a network like any other.
        stacked = torch.stack(images) if images else self.preprocess(Image.new("RGB", (64, 64)))[None][:0]
        return LoadedBatch(stacked, torch.tensor(indices, dtype=torch.int64), bad)
