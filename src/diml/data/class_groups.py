"""Which images belong to which class, and class-balanced draws among them.

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
    """Some classes have too few images to be trained on and are left out."""


@dataclass(frozen=True, eq=False)
class ClassGroups:
    """Images by class.

    Attributes:
        members: C arrays of image indices, (n_c,) int64 each, rising; n_c may be 0.
    """

    members: tuple[Indices, ...]

    @classmethod
    def of(cls, labels: ArrayLike | Tensor) -> ClassGroups:
        """Group images by label (N,); classes stand in the order of their labels.

        Raises:
            ValueError: `labels` are not whole numbers of shape (N,), or there are none.
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
        """All images of these classes, rising."""
        return np.sort(self.numbered[0])

    @cached_property
    def numbered(self) -> tuple[Indices, Indices]:
        """All images, class by class, and the class number of each."""
        sizes = [len(member) for member in self.members]
        return np.concatenate([np.empty(0, np.int64), *self.members]), np.repeat(np.arange(len(sizes)), sizes)

    def at_least(self, size: int) -> ClassGroups:
        """Only the classes that have `size` images or more."""
        return ClassGroups(tuple(member for member in self.members if len(member) >= size))

    def among(self, allowed: NDArray[np.bool_]) -> ClassGroups:
        """Every class with only those of its images that `allowed` (N,) has; C stays the same."""
        return ClassGroups(tuple(member[allowed[member]] for member in self.members))


def usable_classes(labels: ArrayLike | Tensor, batch_size: int, per_class: int) -> ClassGroups:
    """Return the classes that can fill their part of a batch with distinct images.

    A class with fewer than `per_class` images is left out, as a pair of a photo with itself teaches nothing.

    Args:
        labels: (N,) whole numbers.
        batch_size: Images in a batch, a multiple of `per_class`.
        per_class: Images of each class in a batch.

    Raises:
        ValueError: `per_class` does not divide `batch_size`, or there are too few classes for a batch.

    Warns:
        SmallClassesWarning: Classes were left out; it says how many, and with how many images.
    """
    if per_class < 1 or batch_size < 1 or batch_size % per_class:
        raise ValueError(
            f"batch_size, per_class: need a batch of whole classes, got {batch_size} images with {per_class} a class"
        )
    everything = ClassGroups.of(labels)
    usable = everything.at_least(per_class)
    left_out = len(everything) - len(usable)
    needed = batch_size // per_class
    if len(usable) < needed:
        most = per_class * len(usable)
        remedy = f"take batch_size {most} at most, or another per_class" if most else "take a smaller per_class"
        raise ValueError(
            f"batch_size: {batch_size} images with {per_class} a class need {needed} classes of at least {per_class} "
            f"images, got {len(usable)}; {remedy}"
        )
    if left_out:
        images = len(everything.images) - len(usable.images)
        warnings.warn(
            f"{left_out} of {len(everything)} classes ({images} images) have fewer than per_class = {per_class} "
            "images and are left out of training",
            SmallClassesWarning,
            stacklevel=4,
        )
    return usable


def draw_balanced(groups: ClassGroups, classes: int, per_class: int, generator: np.random.Generator) -> Indices:
    """Draw distinct classes and distinct images of each, all equally likely: (classes * per_class,), by class."""
    chosen = generator.choice(len(groups), classes, replace=False)
    parts = [generator.choice(groups.members[number], per_class, replace=False) for number in chosen]
    return np.concatenate(parts)


def epoch_length(images: int, batch_size: int, batches_per_epoch: int | None) -> int:
    """Return the batches of an epoch: those wanted, or images // batch_size as in the authors' runs; at least 1."""
    if batches_per_epoch is None:
        return max(1, images // batch_size)
    if batches_per_epoch < 1:
        raise ValueError(f"batches_per_epoch: need at least 1, got {batches_per_epoch}; None means N // batch_size")
    return batches_per_epoch


def generator_of(*seeds: int) -> np.random.Generator:
    """Return the generator that belongs to these numbers, such as (seed, epoch), and to no others."""
    return np.random.default_rng(seeds)


def checked_seed(name: str, value: Any) -> int:
    """Return a seed or an epoch as an int; negative ones are refused."""
    if int(value) != value or value < 0:
        raise ValueError(f"{name}: need a whole number of at least 0, got {value}")
    return int(value)
