"""What `Embedder.embed` accepts: lists of images, data sets, and loaders of preprocessed tensors.

Legend: N images, B images of a batch.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diml.data.image_sets import DatasetImages, ImageSet
from diml.data.images import ImageLike
from diml.data.loading import LoadedBatch

Images = Sequence[ImageLike] | ImageLike | Dataset[Any] | DataLoader[Any]
"""One image or many; a map-style data set of images or (image, label), such as an `ImageSet`; or a `DataLoader` of
preprocessed float tensors (B, 3, H, W), alone or as (tensor, label, ...)."""


def as_images(images: Images) -> Sequence[ImageLike]:
    """One or many images as a sequence; those of a data set are read when indexed.

    Raises:
        TypeError: an iterable-style data set.
        ValueError: no images.
    """
    given: Any = images
    lone = isinstance(given, str | bytes | os.PathLike | Image.Image)
    if lone or (isinstance(given, Tensor | np.ndarray) and given.ndim < 4):
        return [given]
    listed: Sequence[ImageLike]
    if isinstance(given, ImageSet):
        listed = given.images
    elif isinstance(given, Dataset):
        listed = DatasetImages(given)
    else:
        listed = given if isinstance(given, list | tuple | DatasetImages) else list(given)
    if not len(listed):
        raise ValueError("images: need at least one image, got an empty list")
    return listed


def loader_batches(loader: DataLoader[Any]) -> Iterator[LoadedBatch]:
    """The batches of a loader of preprocessed images, numbered in the order in which they come.

    Raises:
        TypeError: a batch is no float tensor, nor a tuple or list that begins with one.
        ValueError: the loader has no images.
    """
    count = 0
    for batch in loader:
        images = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(
                f"images: need a DataLoader of preprocessed float tensors (B, 3, H, W), alone or as (tensor, label), "
                f"got {got}; apply embedder.preprocess in its data set, or pass the data set itself"
            )
        yield LoadedBatch(images, torch.arange(count, count + len(images)), ())
        count += len(images)
    if not count:
        raise ValueError("images: need at least one image, got a DataLoader without batches")


def count_images(loader: DataLoader[Any]) -> int:
    """How many images a loader announces; 0 where it does not know."""
    counted: Any = loader.sampler if loader.batch_sampler is not None else loader.dataset
    with contextlib.suppress(TypeError, NotImplementedError, AttributeError):
        return len(counted)
    return 0
