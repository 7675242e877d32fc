"""Batches of augmented images for training: planned by a sampler, decoded by worker processes when wanted.

What a batch holds depends on the planned indices and on (seed, epoch) alone, not on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset

from diml.data.augment import Augment, item_seed
from diml.data.class_groups import checked_seed
from diml.data.images import BadImageError, ImageLike
from diml.data.loading import Collate, Decoded, ImagesByIndex, LoadedBatch, start_method

_Item = tuple[int, int]


class TrainingLoader:
    """Decodes and augments planned batches; its worker processes live on from epoch to epoch.

    Args:
        images: N images, usually paths; see `ImageLike`.
        augment: Varies each image by a seed of its own.
        workers: Processes that decode; 0 decodes in this one. As for `iterate_batches`, a script that uses them needs
            `if __name__ == "__main__":`, and images in memory are always decoded here.
        on_bad_image: `fail` raises at the first one; `skip` reports them in `LoadedBatch.bad`, and the batch has so
            many images less.

    Raises:
        ValueError: `workers` or `on_bad_image` out of its range.

    Example:
        >>> with TrainingLoader(paths, Augment(), workers=2) as loader:  # doctest: +SKIP
        ...     for epoch in range(epochs):
        ...         for batch in loader.epoch(sampler.batches(epoch), seed=0, epoch=epoch):
        ...             step(batch.images, labels[batch.indices])
    """

    def __init__(
        self,
        images: Sequence[ImageLike],
        augment: Augment,
        *,
        workers: int = 0,
        on_bad_image: Literal["fail", "skip"] = "fail",
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers: need 0 or more processes, got {workers}")
        if on_bad_image not in ("fail", "skip"):
            raise ValueError(f"on_bad_image: need 'fail' or 'skip', got {on_bad_image!r}")
        if any(not isinstance(image, str | bytes) and not hasattr(image, "__fspath__") for image in images):
            workers = 0
        self._images = len(images)
        self._fail = on_bad_image == "fail"
        self._plan = _Plan()
        self._loader: DataLoader[Decoded] | None = DataLoader(
            _SeededImages(images, augment),
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=Collate(augment.preprocess),
            # A generator of its own: the loader draws a seed, and the global stream is the caller's.
            generator=torch.Generator(),
            multiprocessing_context=start_method() if workers else None,
            persistent_workers=workers > 0,
        )

    def epoch(self, batches: Iterable[Sequence[int]], *, seed: int = 0, epoch: int = 0) -> Iterator[LoadedBatch]:
        """Decode and augment batches, in their order.

        Args:
            batches: Indices into the images, batch by batch, such as `sampler.batches(epoch)`; a resumed run leaves
                out those it has done, a process of several gives its share of each.
            seed: Of the run, 0 or more.
            epoch: Number of the epoch, 0 or more. A image looks the same whenever it comes in one epoch.

        Yields:
            One `LoadedBatch` a batch, `indices` in the order of the batch.

        Raises:
            BadImageError: Under `fail`, for a image that cannot be used, a missing file included.
            ValueError: An index out of range, a negative seed, or the loader is closed.
        """
        if self._loader is None:
            raise ValueError("loader: is closed; make a new one")
        planned = [[int(index) for index in batch] for batch in batches]
        for index in (index for batch in planned for index in batch):
            if not 0 <= index < self._images:
                raise ValueError(f"batches: need indices 0..{self._images - 1}, got {index}")
        return self._decoded(self._loader, planned, checked_seed("seed", seed), checked_seed("epoch", epoch))

    def close(self) -> None:
        """End the worker processes."""
        self._loader = None

    def __enter__(self) -> TrainingLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _decoded(
        self, loader: DataLoader[Decoded], planned: list[list[int]], seed: int, epoch: int
    ) -> Iterator[LoadedBatch]:
        self._plan.items = ([(index, item_seed(seed, epoch, index)) for index in batch] for batch in planned)
        batch: LoadedBatch
        for batch in loader:
            if self._fail and batch.bad:
                # Raised here rather than in the worker, whose errors come out wrapped in a traceback of text.
                raise BadImageError(batch.bad[0].path, batch.bad[0].reason)
            yield batch


def training_batches(
    images: Sequence[ImageLike],
    batches: Iterable[Sequence[int]],
    augment: Augment,
    *,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> Iterator[LoadedBatch]:
    """Decode and augment the batches of one epoch; `TrainingLoader` keeps the workers for the next.

    Arguments, results and errors as those of `TrainingLoader` and its `epoch`.
    """
    loader = TrainingLoader(images, augment, workers=workers, on_bad_image=on_bad_image)
    return loader.epoch(batches, seed=seed, epoch=epoch)


class _Plan:
    """What the loader takes for a batch sampler; it asks anew at the start of each epoch."""

    items: Iterable[list[_Item]] = ()

    def __iter__(self) -> Iterator[list[_Item]]:
        return iter(self.items)


class _SeededImages(Dataset[Decoded]):
    """Images to be asked for by (index, seed of the image)."""

    def __init__(self, images: Sequence[ImageLike], augment: Augment) -> None:
        self.images = images
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: _Item) -> Decoded:
        index, seed = item
        return ImagesByIndex(self.images, partial(self.augment, seed=seed))[index]
