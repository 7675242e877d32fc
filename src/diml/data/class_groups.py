"""Images grouped by class, and class-balanced random draws from them: what all batch samplers share.

Legend: N images, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Indices = NDArray[np.int64]


class SmallClassesWarning(UserWarning):
    """Some classes have too few images for training and are omitted."""


@dataclass(frozen=True, eq=False)
class ClassGroups:
    """Images by class.

    Attributes:
        members: C arrays of image indices, (n_c,) int64 each, ascending; n_c may be 0.
    """

    members: tuple[Indices, ...]

    @classmethod
    def of(cls, labels: ArrayLike | Tensor) -> ClassGroups:
        """Group images by label (N,); the classes are in the order of their labels.

        Raises:
            ValueError: `labels` are not whole numbers of shape (N,), or are empty.
        """
        values = np.asarray(labels)
        if values.ndim != 1 or not len(values) or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"labels: need whole numbers of shape (N,), got {values.dtype} of shape {values.shape}")
        number = np.unique(values, return_inverse=True)[1]
        order = np.argsort(number, kind="stable").astype(np.int64)
        return cls(tuple(np.split(order, np.cumsum(np.bincount(number))[:-1])))

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def images(self) -> Indices:
        """All images of these classes, ascending."""
        return np.sort(self.numbered[0])

    @cached_property
    def numbered(self) -> tuple[Indices, Indices]:
        """All images, class by class, and the class number of each image."""
        sizes = [len(member) for member in self.members]
        return np.concatenate([np.empty(0, np.int64), *self.members]), np.repeat(np.arange(len(sizes)), sizes)

    def at_least(self, size: int) -> ClassGroups:
        """Return the classes that have at least `size` images."""
        return ClassGroups(tuple(member for member in self.members if len(member) >= size))

    def among(self, allowed: NDArray[np.bool_]) -> ClassGroups:
        """Return all C classes, each with only its images in the mask `allowed` (N,)."""
        return ClassGroups(tuple(member[allowed[member]] for member in self.members))


def usable_classes(labels: ArrayLike | Tensor, batch_size: int, per_class: int) -> ClassGroups:
    """Return the classes that have enough distinct images for their part of a batch.

    A class with fewer than `per_class` images is omitted, as an image paired with itself gives no training signal.

    Args:
        labels: (N,) whole numbers.
        batch_size: Images in a batch, a multiple of `per_class`.
        per_class: Images of each class in a batch.

    Raises:
        ValueError: `per_class` does not divide `batch_size`, or there are too few classes for a batch.

    Warns:
        SmallClassesWarning: Classes were omitted; it says how many, and with how many images.
    """
    if per_class < 1 or batch_size < 1 or batch_size % per_class:
        raise ValueError(
            f"batch_size, per_class: need complete classes, got {batch_size} images with {per_class} per class"
        )
    everything = ClassGroups.of(labels)
    usable = everything.at_least(per_class)
    omitted = len(everything) - len(usable)
    needed = batch_size // per_class
    if len(usable) < needed:
        most = per_class * len(usable)
        remedy = f"use a batch_size of at most {most}, or another per_class" if most else "use a smaller per_class"
        raise ValueError(
            f"batch_size: {batch_size} images with {per_class} per class need {needed} classes of at least {per_class} "
            f"images, got {len(usable)}; {remedy}"
        )
    if omitted:
        images = len(everything.images) - len(usable.images)
        warnings.warn(
            f"{omitted} of {len(everything)} classes ({images} images) have fewer than per_class = {per_class} "
            "images and are omitted from training",
            SmallClassesWarning,
            stacklevel=4,
        )
    return usable


def fitting_batch(labels: ArrayLike | Tensor, batch_size: int, per_class: int) -> tuple[int, int]:
    """The sizes of a batch that the classes can fill: these, or the nearest smaller ones.

    Args:
        labels: (N,) whole numbers.
        batch_size: Images in a batch, at most.
        per_class: Images of each class in a batch, at most; fewer where more than half of the classes have fewer.

    Raises:
        ValueError: There are no two classes with two images each.
    """
    sizes = [len(member) for member in ClassGroups.of(labels).members]
    paired = sorted((size for size in sizes if size > 1), reverse=True)
    if len(paired) < 2:
        raise ValueError(f"dataset: need two classes with two images each for a batch, got {len(paired)} such classes")
    per_class = min(per_class, paired[len(paired) // 2])
    classes = sum(size >= per_class for size in sizes)
    return per_class * min(batch_size // per_class, classes), per_class


def draw_balanced(groups: ClassGroups, classes: int, per_class: int, generator: np.random.Generator) -> Indices:
    """Draw distinct classes, and distinct images of each, uniformly: (classes * per_class,) indices, by class."""
    chosen = generator.choice(len(groups), classes, replace=False)
    parts = [generator.choice(groups.members[number], per_class, replace=False) for number in chosen]
    return np.concatenate(parts)


def epoch_length(images: int, batch_size: int, batches_per_epoch: int | None) -> int:
    """Return the batches per epoch: the given number, or images // batch_size as in the authors' runs, at least 1."""
    if batches_per_epoch is None:
        return max(1, images // batch_size)
    if batches_per_epoch < 1:
        raise ValueError(f"batches_per_epoch: need at least 1, got {batches_per_epoch}; None means N // batch_size")
    return batches_per_epoch


def generator_of(*seeds: int) -> np.random.Generator:
    """Return the random generator determined by these numbers, such as (seed, epoch)."""
    return np.random.default_rng(seeds)


def checked_seed(name: str, value: Any) -> int:
    """Return a seed or an epoch as an int; raise ValueError for a negative or fractional one."""
    if int(value) != value or value < 0:
        raise ValueError(f"{name}: need a whole number of at least 0, got {value}")
    return int(value)
