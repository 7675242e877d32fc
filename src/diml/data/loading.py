"""Batches of decoded images: in order for embedding, or as planned by a sampler and augmented for training.

Files are decoded by threads while the network works, or by worker processes where wanted. An image that cannot be read
is reported, never dropped silently. What a training batch holds depends on the planned indices and on (seed, epoch)
alone, not on the number of workers.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from diml.data.class_groups import checked_seed
from diml.data.image_sets import DatasetImages
from diml.data.images import BadImage, BadImageError, ImageLike, image_name, load_image
from diml.data.pixel_depth import Notice, collected_notices, say
from diml.data.transforms import Preprocess
from diml.workers import check_workers, end_with_parent

if TYPE_CHECKING:
    from diml.data.augment import Augment  # it brings torchvision, which embedding does not need

Prepare = Callable[[Image.Image], torch.Tensor]
#: Threads that decode; each holds one decoded image at a time.
_DECODING_THREADS: Final = 8

_Decoded = tuple[int, torch.Tensor | BadImage, list[Notice]]
_Item = tuple[int, int]


@dataclass(frozen=True, eq=False)
class LoadedBatch:
    """A batch of decoded images.

    Attributes:
        images: (B, 3, H, W), float32, normalised.
        indices: (B,), int64, index of each image in the sequence.
        bad: The images of this batch that could not be used; B + len(bad) were read, and B may be 0.
        notices: What had to be assumed of its images, which the process that reads the batches says once.
    """

    images: torch.Tensor
    indices: torch.Tensor
    bad: tuple[BadImage, ...]
    notices: tuple[Notice, ...] = ()


def iterate_batches(
    images: Sequence[ImageLike],
    preprocess: Prepare,
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_bad_image: Literal["fail", "skip"] = "fail",
) -> Iterator[LoadedBatch]:
    """Decode and preprocess images batch by batch, in their order.

    Args:
        images: N images, see `ImageLike`; or a `DatasetImages`.
        preprocess: From an RGB image to a tensor (3, H, W) of the same shape for all, such as a `Preprocess`, which
            also decides at what size JPEG files are decoded (`Preprocess.at_least`).
        batch_size: Images per batch, at least 1.
        workers: Worker processes that decode; 0 decodes in this process, files by threads, one batch ahead of the one
            in use, where they are prepared by a `Preprocess`. Workers are started by `forkserver` or
            `spawn`, so that threads and GPU state of this process are not copied; a script that uses them needs
            `if __name__ == "__main__":`. Images in memory (tensors, PIL) are always decoded in this process, as
            sending them to a worker costs more than decoding.
        on_bad_image: `fail` raises at the first one; `skip` reports them in `LoadedBatch.bad`.

    Yields:
        ceil(N / batch_size) batches; each index occurs in exactly one of them, or its image in `bad`.

    Raises:
        BadImageError: With `fail`, for an image that cannot be used, including a missing file.
        ValueError: `batch_size`, `workers` or `on_bad_image` is out of its range.

    Example:
        >>> batches = iterate_batches([Image.new("RGB", (9, 9))], Preprocess(size=8, resize=8))  # doctest: +SKIP
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    _check_options(workers, on_bad_image)
    return _in_order(images, preprocess, batch_size, workers, fail=on_bad_image == "fail")


def _in_order(
    images: Sequence[ImageLike], preprocess: Prepare, batch_size: int, workers: int, *, fail: bool
) -> Iterator[LoadedBatch]:
    workers = min(_usable_workers(images, workers), -(-len(images) // batch_size))
    if not workers and isinstance(preprocess, Preprocess) and _are_files(images):
        return _decoded_by_threads(images, preprocess, batch_size, fail=fail)
    loader: DataLoader[_Decoded] = DataLoader(
        _DecodedImages(images, preprocess),
        batch_size=batch_size,
        shuffle=False,
        num_workers=workers,
        collate_fn=_Collate(preprocess),
        # Its own generator: the loader draws a seed, and the global generator belongs to the caller.
        generator=torch.Generator(),
        multiprocessing_context=_start_method() if workers else None,
        worker_init_fn=end_with_parent,
    )
    return _checked(loader, fail=fail)


def _decoded_by_threads(
    images: Sequence[ImageLike], preprocess: Prepare, batch_size: int, *, fail: bool
) -> Iterator[LoadedBatch]:
    with contextlib.closing(_decoded_ahead(images, preprocess, batch_size)) as batches:
        yield from _checked(batches, fail=fail)


def _decoded_ahead(
    images: Sequence[ImageLike], preprocess: Prepare, batch_size: int
) -> Generator[LoadedBatch, None, None]:
    """Batches that threads decode, each while its predecessor is in use: Pillow does not hold Python's lock."""
    collate, planned = _Collate(preprocess), iter(range(0, len(images), batch_size))
    pool = ThreadPoolExecutor(min(_DECODING_THREADS, os.cpu_count() or 1), "diml-decoding")

    def begin() -> list[Future[_Decoded]]:
        start = next(planned, len(images))
        rows = range(start, min(start + batch_size, len(images)))
        return [pool.submit(_decode, images, row, preprocess, _at_least(preprocess)) for row in rows]

    try:
        ahead = begin()
        while ahead:
            current, ahead = ahead, begin()
            yield collate([item.result() for item in current])
    finally:  # also where the caller stops early
        pool.shutdown(cancel_futures=True)


class TrainingLoader:
    """Decodes and augments planned batches; its worker processes are kept from epoch to epoch.

    Args:
        images: N images, usually paths; see `ImageLike`; or a `DatasetImages`.
        augment: Augmentation, called with one seed per image.
        workers: Worker processes that decode, as in `iterate_batches`.
        on_bad_image: `fail` raises at the first one; `skip` reports them in `LoadedBatch.bad`, and the batch is
            smaller by as many.

    Raises:
        ValueError: `workers` or `on_bad_image` is out of its range.

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
        _check_options(workers, on_bad_image)
        workers = _usable_workers(images, workers)
        self._images = len(images)
        self._fail = on_bad_image == "fail"
        self._plan = _Plan()
        self._loader: DataLoader[_Decoded] | None = DataLoader(
            _SeededImages(images, augment),
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_Collate(augment.preprocess),
            generator=torch.Generator(),  # as above
            multiprocessing_context=_start_method() if workers else None,
            worker_init_fn=end_with_parent,
            persistent_workers=workers > 0,
        )

    def epoch(self, batches: Iterable[Sequence[int]], *, seed: int = 0, epoch: int = 0) -> Iterator[LoadedBatch]:
        """Decode and augment batches, in their order.

        Args:
            batches: Indices of images, batch by batch, such as `sampler.batches(epoch)`. A resumed run omits the
                batches it has done; each of several processes passes its share of each batch.
            seed: Seed of the run, 0 or more.
            epoch: Number of the epoch, 0 or more. An image is augmented identically whenever it occurs in one epoch.

        Yields:
            One `LoadedBatch` per batch, `indices` in the order of the batch.

        Raises:
            BadImageError: Under `fail`, for an image that cannot be used, including a missing file.
            ValueError: An index is out of range, a seed negative, or the loader closed.
        """
        if self._loader is None:
            raise ValueError("loader: is closed; create a new one")
        planned = [[int(index) for index in batch] for batch in batches]
        for index in (index for batch in planned for index in batch):
            if not 0 <= index < self._images:
                raise ValueError(f"batches: need indices 0..{self._images - 1}, got {index}")
        return self._decoded(self._loader, planned, checked_seed("seed", seed), checked_seed("epoch", epoch))

    def close(self) -> None:
        """Shut the worker processes down."""
        self._loader = None

    def __enter__(self) -> TrainingLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _decoded(
        self, loader: DataLoader[_Decoded], planned: list[list[int]], seed: int, epoch: int
    ) -> Iterator[LoadedBatch]:
        # Set when the iteration begins, not before: the iterators of two epochs may be interleaved.
        self._plan.items = ([(index, item_seed(seed, epoch, index)) for index in batch] for batch in planned)
        yield from _checked(loader, fail=self._fail)


def item_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one image in one epoch of a run, hashed to 0 to 2^63 - 1."""
    mixed = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


def _check_options(workers: int, on_bad_image: str) -> None:
    check_workers(workers)
    if on_bad_image not in ("fail", "skip"):
        raise ValueError(f"on_bad_image: expected 'fail' or 'skip', got {on_bad_image!r}")


def _usable_workers(images: Sequence[ImageLike], workers: int) -> int:
    """Return `workers`, or 0 where the images cannot, or need not, be read by another process."""
    if not workers:
        return 0
    if not isinstance(images, DatasetImages):
        return workers if _are_files(images) else 0
    try:
        pickle.Pickler(_Discard(), pickle.HIGHEST_PROTOCOL).dump(images.dataset)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        warnings.warn(
            f"workers: {type(images.dataset).__name__} cannot be sent to worker processes ({error}); its images are "
            "read in this process. Replace lambdas and local functions in its transforms by module-level ones",
            stacklevel=4,
        )
        return 0
    return workers


def _are_files(images: Sequence[ImageLike]) -> bool:
    """Whether all are paths or the bytes of files: of data sets and of images in memory nothing is known."""
    if isinstance(images, DatasetImages):
        return False
    return all(isinstance(image, str | os.PathLike | bytes) for image in images)


class _Discard(io.RawIOBase):
    """A file that keeps nothing: pickling a large data set to it needs no memory."""

    def write(self, data: Any, /) -> int:
        return len(data)


def _start_method() -> str:
    """How worker processes are started: never by a plain fork, which copies the locks of threads."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def _checked(loader: Iterable[Any], *, fail: bool) -> Iterator[LoadedBatch]:
    """Yield the loader's batches; raise for a bad image in this process, as workers wrap errors in a traceback."""
    batch: LoadedBatch
    for batch in loader:
        for notice in batch.notices:
            say(notice)
        if fail and batch.bad:
            raise BadImageError(batch.bad[0].path, batch.bad[0].reason)
        yield batch


def _decode(images: Sequence[ImageLike], index: int, prepare: Prepare, at_least: int | None) -> _Decoded:
    """Read and prepare one image; return (index, tensor or the bad image, what had to be assumed)."""
    name = images.image_name(index) if isinstance(images, DatasetImages) else image_name(images[index], index)
    result: torch.Tensor | BadImage
    with collected_notices() as notices:
        try:
            result = prepare(load_image(images[index], name=name, at_least=at_least))
        except BadImageError as error:
            result = BadImage(error.path, error.reason)
        except FileNotFoundError:
            result = BadImage(name, "no such file")
        except MemoryError:
            result = BadImage(name, "needs more memory than is available")
    return index, result, notices


def _at_least(prepare: Prepare) -> int | None:
    """The size at which JPEG files are decoded for a preprocessing; of other functions nothing is known."""
    return prepare.at_least if isinstance(prepare, Preprocess) else None


class _DecodedImages(Dataset[_Decoded]):
    """Images decoded and prepared by index."""

    def __init__(self, images: Sequence[ImageLike], prepare: Prepare) -> None:
        self.images = images
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Decoded:
        return _decode(self.images, index, self.prepare, _at_least(self.prepare))


class _SeededImages(Dataset[_Decoded]):
    """Images decoded and augmented by (index, seed of the image)."""

    def __init__(self, images: Sequence[ImageLike], augment: Augment) -> None:
        self.images = images
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: _Item) -> _Decoded:
        index, seed = item
        return _decode(self.images, index, partial(self.augment, seed=seed), self.augment.at_least)


class _Plan:
    """The loader's batch sampler, iterated anew at the start of each epoch."""

    items: Iterable[list[_Item]] = ()

    def __iter__(self) -> Iterator[list[_Item]]:
        return iter(self.items)


@dataclass(frozen=True)
class _Collate:
    """Stacks decoded images to a `LoadedBatch`, the bad ones apart."""

    preprocess: Prepare

    def __call__(self, items: list[_Decoded]) -> LoadedBatch:
        """Return the batch of these items."""
        images = [item for _, item, _ in items if isinstance(item, torch.Tensor)]
        indices = [index for index, item, _ in items if isinstance(item, torch.Tensor)]
        bad = tuple(item for _, item, _ in items if isinstance(item, BadImage))
        notices: dict[str, Notice] = {}  # the first one of each rule: all images of a set usually have the same
        for _, _, said in items:
            for notice in said:
                notices.setdefault(notice.rule, notice)
        # An empty batch has the shape of an image as well, so that it can pass through a network.
        stacked = torch.stack(images) if images else self.preprocess(Image.new("RGB", (64, 64)))[None][:0]
        return LoadedBatch(stacked, torch.tensor(indices, dtype=torch.int64), bad, tuple(notices.values()))
