"""Labelled images, and how a named data set divides them into training and test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N labelled images and, for retrieval, which of them ask and which answer.

    Attributes:
        name: What reports call it.
        paths: N paths.
        labels: (N,), int64, class of each image, 0 to C - 1.
        class_names: C names.
        queries: Indices into `paths` of the images that ask; None with `gallery`: leave-one-out, every image
            asks all others.
        gallery: Indices of the images that answer. A image in both never answers itself.

    Raises:
        ValueError: The parts do not fit together; the message says which.
    """

    name: str
    paths: tuple[Path, ...]
    labels: Indices
    class_names: tuple[str, ...]
    queries: Indices | None = None
    gallery: Indices | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(Path(path) for path in self.paths))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        labels = _whole_numbers(self.labels, f"labels of {self.name}")
        object.__setattr__(self, "labels", labels)
        if not self.paths:
            raise ValueError(f"paths of {self.name}: expected at least one image, got none")
        if len(labels) != len(self.paths):
            raise ValueError(f"labels of {self.name}: expected {len(self.paths)}, one a path, got {len(labels)}")
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise ValueError(
                f"labels of {self.name}: expected 0 to {len(self.class_names) - 1} for {len(self.class_names)} "
                f"class names, got {labels.min()} to {labels.max()}"
            )
        if (self.queries is None) != (self.gallery is None):
            raise ValueError(f"queries and gallery of {self.name}: give both, or neither for leave-one-out")
        for side in ("queries", "gallery"):
            if getattr(self, side) is not None:
                chosen = _chosen(getattr(self, side), len(self.paths), f"{side} of {self.name}")
                object.__setattr__(self, side, chosen)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """C, the number of class names."""
        return len(self.class_names)

    def subset(self, indices: ArrayLike) -> ImageSet:
        """Return some of the images, in the order given.

        Classes that keep no image are dropped and the others renumbered 0 to C' - 1 in their old order. Queries
        and gallery follow their images.

        Args:
            indices: Distinct indices into `paths`, at least one.

        Raises:
            ValueError: Indices out of range, repeated or none; or no query or no gallery image is left.
        """
        kept = _chosen(indices, len(self), f"indices of a subset of {self.name}")
        present, labels = np.unique(self.labels[kept], return_inverse=True)
        position = np.full(len(self), -1, dtype=np.int64)
        position[kept] = np.arange(len(kept))
        sides: dict[str, Indices | None] = {"queries": None, "gallery": None}
        for side in sides:
            old = getattr(self, side)
            if old is not None:
                moved = position[old]
                sides[side] = moved[moved >= 0]
                if not len(moved[moved >= 0]):
                    raise ValueError(
                        f"subset of {self.name}: none of its {len(kept)} images is in {side}; choose images of "
                        "both sides, or take the subset of a set without queries and gallery"
                    )
        return ImageSet(
            name=self.name,
            paths=tuple(self.paths[index] for index in kept),
            labels=labels.reshape(-1).astype(np.int64),
            class_names=tuple(self.class_names[old] for old in present),
            queries=sides["queries"],
            gallery=sides["gallery"],
        )

    def classes(self, wanted: ArrayLike) -> ImageSet:
        """Return the images of some classes, in their order; `wanted` are class numbers."""
        chosen = _chosen(wanted, self.num_classes, f"classes of {self.name}")
        return self.subset(np.flatnonzero(np.isin(self.labels, chosen)))

    def split_classes(self, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
        """Divide the classes by chance into a set for training and one for validation.

        Args:
            fraction: Share of the classes that go to validation, between 0 and 1; rounded to whole classes.
            seed: The same seed makes the same division.

        Returns:
            (training, validation); no class is in both, every image is in one.

        Raises:
            ValueError: `fraction` leaves one of the two without a class.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: expected the share of classes for validation, in (0, 1), got {fraction}")
        present = np.unique(self.labels)
        held_out = round(fraction * len(present))
        if not 0 < held_out < len(present):
            raise ValueError(
                f"fraction: {fraction} of the {len(present)} classes of {self.name} leaves "
                f"{'validation' if held_out == 0 else 'training'} without a class; "
                + (f"at least {1 / len(present):.3g} is needed" if len(present) > 1 else "two classes are needed")
            )
        shuffled = np.random.default_rng(seed).permutation(present)
        return self.classes(np.sort(shuffled[held_out:])), self.classes(np.sort(shuffled[:held_out]))


@dataclass(frozen=True, eq=False)
class DataSet:
    """A named data set under one protocol: images to train on, if any, images to test on, and whom to credit."""

    name: str
    protocol: str
    train: ImageSet | None
    test: ImageSet
    credit: str | None


def numbered(keys: Iterable[Any]) -> tuple[Indices, list[Any]]:
    """Number keys 0, 1, ... in their sorted order; return (N,) int64 numbers and the distinct keys."""
    keys = list(keys)
    distinct = sorted(set(keys))
    number = {key: place for place, key in enumerate(distinct)}
    return np.array([number[key] for key in keys], dtype=np.int64), distinct


def _whole_numbers(values: ArrayLike, what: str) -> Indices:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{what}: expected whole numbers of shape (N,), got {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64)  # a copy, which can be frozen
    array.setflags(write=False)
    return array


def _chosen(values: ArrayLike, limit: int, what: str) -> Indices:
    """Check that these are distinct indices below `limit`, at least one."""
    array = _whole_numbers(values, what)
    if not len(array):
        raise ValueError(f"{what}: expected at least one index, got none")
    if array.min() < 0 or array.max() >= limit:
        raise ValueError(f"{what}: expected 0 to {limit - 1}, got {array.min()} to {array.max()}")
    if len(np.unique(array)) != len(array):
        raise ValueError(f"{what}: {len(array) - len(np.unique(array))} indices are repeated; give each once")
    return array
