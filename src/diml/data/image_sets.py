"""Labelled images, the user's own or those of a named data set, and its division into training and test.

Legend: N images, C classes.
"""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from diml.data.columns import Columns, column_labels, find_columns, image_column, plain_image
from diml.data.images import BadImageError, ImageLike, image_name, is_image, load_image
from diml.data.judgements import Judgements
from diml.spelling import did_you_mean

Indices = NDArray[np.int64]
Labels = Sequence[int] | Sequence[str] | NDArray[Any] | Tensor

_THUMBNAILS: Final = 6
_THUMBNAIL_SIDE: Final = 72
# Large photos are skipped rather than decoded for the table of a notebook.
_THUMBNAIL_PIXELS: Final = 30_000_000


class DatasetImages(Sequence[ImageLike]):
    """The images of a map-style `torch.utils.data.Dataset`, read from it one by one when indexed.

    A slice, and `take`, select without reading anything. The view is as picklable as the data set, so worker
    processes can read from it.

    Args:
        dataset: Has `__len__`; its items are images (see `ImageLike`), tuples that begin with one, or dicts.
        rows: (N,) indices into `dataset`; None means all.
        column: Where items are dicts, the key of the image.

    Raises:
        TypeError: The data set is iterable-style, or has no length.
    """

    def __init__(self, dataset: Dataset[Any], rows: Indices | None = None, column: str | None = None) -> None:
        if isinstance(dataset, IterableDataset) or not all(hasattr(dataset, n) for n in ("__len__", "__getitem__")):
            raise TypeError(
                f"dataset: need a map-style data set with __len__ and __getitem__, got {type(dataset).__name__}; "
                "collect the images of an iterable one in a list"
            )
        self.dataset: Any = dataset
        self.rows = np.arange(len(dataset), dtype=np.int64) if rows is None else rows  # type: ignore[arg-type]
        self.column = column

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ImageLike: ...
    @overload
    def __getitem__(self, index: slice) -> DatasetImages: ...
    def __getitem__(self, index: int | slice) -> ImageLike | DatasetImages:
        if isinstance(index, slice):
            return DatasetImages(self.dataset, self.rows[index], self.column)
        try:
            item: Any = self.dataset[int(self.rows[index])]
        except FileNotFoundError:
            raise
        except (OSError, SyntaxError) as error:  # what Pillow raises on damaged files
            raise BadImageError(self.image_name(index), f"cannot be read from the data set ({error})") from error
        if isinstance(item, Mapping):
            item = plain_image(item[self.column or image_column(item)])
        image: ImageLike = item[0] if isinstance(item, tuple | list) and item else item
        if not is_image(image):
            raise TypeError(
                f"dataset: need items (image, label) whose image is a path, bytes, PIL image, tensor or array, got "
                f"{type(image).__name__} in item {self.rows[index]}"
            )
        return image

    def __repr__(self) -> str:
        return f"DatasetImages({type(self.dataset).__name__}, {len(self):,} images)"

    def take(self, indices: Indices) -> DatasetImages:
        """Return the images at `indices` (M,), in that order."""
        return DatasetImages(self.dataset, self.rows[indices], self.column)

    def image_name(self, index: int) -> str:
        """Return the path of an image where the data set lists it (torchvision's `samples`), else `<image ROW>`."""
        dataset, row = _unwrapped(self.dataset, int(self.rows[index]))
        samples = getattr(dataset, "samples", None)
        if isinstance(samples, list) and len(samples) == len(dataset) and isinstance(samples[row], tuple | list):
            path = samples[row][0]
            if isinstance(path, str | os.PathLike):
                return os.fspath(path)
        return f"<image {self.rows[index]}>"


@dataclass(frozen=True, eq=False, repr=False, init=False)
class ImageSet(Dataset[tuple[ImageLike, int]]):
    """N labelled images and, for retrieval, which of them are queries and which form the gallery.

    It is itself a map-style data set: `image_set[3]` is the pair (image, class number).

    Args:
        images: N images, see `ImageLike`: usually paths; also a batch as one array or tensor, or a `DatasetImages`.
        labels: (N,) class of each image. Strings, or whole numbers; with `class_names`, the names or 0 to C - 1.
        class_names: C names; default the distinct labels, sorted.
        queries: Distinct indices of the images used as queries. None, together with `gallery`: leave-one-out, every
            image is a query against all others.
        gallery: Distinct indices of the images to be retrieved. An image on both sides never retrieves itself.
        cameras: (N,) camera or sequence of each image, strings or whole numbers: in an evaluation a query ignores the
            gallery images of its own class and camera. None: it ignores itself only.
        judgements: Relevant and ignored images of each of the queries, in their order, instead of the classes.
        draws: Several pairs (queries, gallery), instead of these two: an evaluation is over all of them. `queries` and
            `gallery` are then those of the first.
        name: Name of the set in reports.

    Attributes:
        images: N images; strings have become `Path`s.
        labels: (N,) int64, 0 to C - 1, read-only.
        class_names: C names.
        queries, gallery: int64, read-only, or None.
        cameras: (N,) int64 camera numbers, read-only, or None.
        judgements: As given, or None.
        draws: Pairs of queries and gallery, int64, read-only; empty where there is one division.
        name: As given.

    Raises:
        TypeError: `images` is a single image.
        ValueError: The arguments do not fit together; the message names the one at fault.

    Example:
        >>> ImageSet(["a.jpg", "b.jpg", "c.jpg"], ["shoe", "hat", "shoe"], name="shop")
        ImageSet('shop', 3 images, 2 classes)
    """

    images: Sequence[ImageLike]
    labels: Indices
    class_names: tuple[str, ...]
    queries: Indices | None
    gallery: Indices | None
    cameras: Indices | None
    judgements: Judgements | None
    draws: tuple[tuple[Indices, Indices], ...]
    name: str

    def __init__(
        self,
        images: Sequence[ImageLike] | NDArray[Any] | Tensor,
        labels: Labels,
        *,
        class_names: Sequence[str] = (),
        queries: ArrayLike | None = None,
        gallery: ArrayLike | None = None,
        cameras: Labels | None = None,
        judgements: Judgements | None = None,
        draws: Sequence[tuple[ArrayLike, ArrayLike]] = (),
        name: str = "images",
    ) -> None:
        listed = _listed(images, name)
        numbers, names = _numbered_labels(labels, tuple(class_names), name)
        if len(numbers) != len(listed):
            raise ValueError(f"labels of {name}: expected {len(listed)}, one per image, got {len(numbers)}")
        if (queries is None) != (gallery is None):
            raise ValueError(f"queries and gallery of {name}: give both, or neither for leave-one-out")
        if len(draws) and (queries is not None or judgements is not None):
            raise ValueError(f"draws of {name}: give them instead of queries, gallery and judgements, not beside them")
        drawn = tuple(
            (_chosen(q, len(listed), f"queries of {name}"), _chosen(g, len(listed), f"gallery of {name}"))
            for q, g in draws
        )
        sides = dict(zip(("queries", "gallery"), drawn[0] if drawn else (queries, gallery), strict=True))
        chosen = {
            side: None if given is None else _chosen(given, len(listed), f"{side} of {name}")
            for side, given in sides.items()
        }
        _check_judgements(judgements, chosen["queries"], len(listed), name)
        seen_by = None if cameras is None else _numbered_labels(cameras, (), name, "cameras")[0]
        if seen_by is not None and len(seen_by) != len(listed):
            raise ValueError(f"cameras of {name}: expected {len(listed)}, one per image, got {len(seen_by)}")
        values: dict[str, Any] = {"images": listed, "labels": numbers, "class_names": names, "name": name, **chosen}
        values |= {"cameras": seen_by, "judgements": judgements, "draws": drawn}
        for field, value in values.items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset[Any],
        *,
        labels: Labels | None = None,
        class_names: Sequence[str] = (),
        queries: ArrayLike | None = None,
        gallery: ArrayLike | None = None,
        image: str | None = None,
        label: str | None = None,
        name: str | None = None,
    ) -> ImageSet:
        """Use the images of a map-style data set: of (image, label), as torchvision's, or of dicts, as Hugging Face's.

        Images are read only when they are needed. The data set should not normalise them: floats have to be in
        [0, 1], and the embedder does the preprocessing.

        Args:
            dataset: Items are tuples (image, label, ...) or dicts with an image and a label: the image a PIL image,
                path, tensor or array (see `ImageLike`), the label a whole number or string.
            labels: (N,) labels. Default: the data set's attribute `targets` where it agrees with its items, or its
                label column; otherwise the labels of the items, for which every item is read once.
            class_names: C names; default the data set's attribute `classes` or the names of its label column where
                they fit, otherwise the labels.
            queries, gallery: As in `ImageSet`.
            image, label: Where items are dicts, the keys of the image and the label; default the columns of the types
                `Image` and `ClassLabel`, else those named `image` and `label`.
            name: Default the name of the data set's class.

        Raises:
            TypeError: The data set is iterable-style, or its items are neither (image, label) nor dicts.
            ValueError: As `ImageSet`; or there is no such column.

        Example:
            >>> ImageSet.from_dataset(torchvision.datasets.Flowers102("data"))  # doctest: +SKIP
            ImageSet('Flowers102', 1,020 images, 102 classes)
        """
        images = DatasetImages(dataset)
        base = _unwrapped(dataset, 0)[0] if len(images) else dataset
        # Only where nothing else tells what the items are is one of them read.
        clear = labels is not None or hasattr(base, "targets")
        asked = image is not None or label is not None or hasattr(base, "features") or not clear
        columns = find_columns(base, image, label) if asked and len(images) else None
        if columns is not None:
            images = DatasetImages(dataset, column=columns.image)
        found = labels
        if labels is None:
            found = _labels_of(dataset) if columns is None else _labels_of_column(dataset, columns)
        names = tuple(class_names) or _class_names_of(dataset, found, None if columns is None else columns.class_names)
        return cls(
            images,
            found,  # type: ignore[arg-type]
            class_names=names,
            queries=queries,
            gallery=gallery,
            name=type(base).__name__ if name is None else name,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[ImageLike, int]:
        """Return an image and its class number."""
        return self.images[index], int(self.labels[index])

    def __repr__(self) -> str:
        facts = [f"{len(self):,} images", f"{self.num_classes:,} classes"]
        if self.queries is not None and self.gallery is not None:
            facts += [f"{len(self.queries):,} queries", f"gallery of {len(self.gallery):,}"]
        if self.cameras is not None:
            facts.append(f"{len(np.unique(self.cameras)):,} cameras")
        if self.judgements is not None:
            facts.append("judged image by image")
        if self.draws:
            facts.append(f"{len(self.draws)} draws")
        return f"ImageSet({self.name!r}, {', '.join(facts)})"

    def _repr_html_(self) -> str:
        """Return a table of facts for notebooks, with a few thumbnails where the images can be read."""
        sizes = np.bincount(self.labels, minlength=self.num_classes)
        rows = {"images": f"{len(self):,}", "classes": f"{self.num_classes:,}"}
        rows["images per class"] = f"{sizes.min():,} to {sizes.max():,}, mean {sizes.mean():.1f}"
        if self.queries is None or self.gallery is None:
            rows["evaluation"] = "leave-one-out"
        else:
            rows |= {"queries": f"{len(self.queries):,}", "gallery": f"{len(self.gallery):,}"}
        cells = "".join(f"<tr><th>{what}</th><td>{value}</td></tr>" for what, value in rows.items())
        return f"<table><caption>{html.escape(self.name)}</caption>{cells}</table>{_thumbnails(self)}"

    @property
    def num_classes(self) -> int:
        """C, the number of class names."""
        return len(self.class_names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths of the images.

        Raises:
            ValueError: The images, or some of them, are not files.
        """
        if isinstance(self.images, DatasetImages) or not all(isinstance(image, Path) for image in self.images):
            raise ValueError(f"paths of {self.name}: not all its images are files; use `images`, or save them as files")
        return tuple(image for image in self.images if isinstance(image, Path))

    def image_name(self, index: int) -> str:
        """Return the name of an image for messages: its path where it has one, else `<image INDEX>`."""
        if isinstance(self.images, DatasetImages):
            return self.images.image_name(index)
        return image_name(self.images[index], index)

    def subset(self, indices: ArrayLike) -> ImageSet:
        """Return some of the images, in the order given.

        Classes without a remaining image are dropped, and the others renumbered 0 to C' - 1 in their old order.
        Queries and gallery follow their images.

        Args:
            indices: Distinct indices of images, at least one.

        Raises:
            ValueError: Indices are out of range or repeated, or there are none; or no query or no gallery image is
                left.
        """
        kept = _chosen(indices, len(self), f"indices of a subset of {self.name}")
        present, labels = np.unique(self.labels[kept], return_inverse=True)
        position = np.full(len(self), -1, dtype=np.int64)
        position[kept] = np.arange(len(kept))
        sides: dict[str, Indices | None] = {"queries": None, "gallery": None}
        for side in sides:
            old = getattr(self, side)
            if old is not None and not self.draws:
                sides[side] = moved = _moved(old, position)
                if not len(moved):
                    raise ValueError(
                        f"subset of {self.name}: none of its {len(kept)} images is in {side}; choose images of "
                        "both sides, or take the subset of a set without queries and gallery"
                    )
        draws = [(_moved(queries, position), _moved(gallery, position)) for queries, gallery in self.draws]
        draws = [(queries, gallery) for queries, gallery in draws if len(queries) and len(gallery)]
        if self.draws and not draws:
            raise ValueError(
                f"subset of {self.name}: no draw has both a query and a gallery image left among {len(kept)}"
            )
        judgements = self.judgements
        if judgements is not None and self.queries is not None:
            judgements = judgements.moved(np.flatnonzero(position[self.queries] >= 0), position)
        if isinstance(self.images, DatasetImages):
            images: Sequence[ImageLike] = self.images.take(kept)
        else:
            images = tuple(self.images[index] for index in kept)
        return ImageSet(
            images,
            labels.reshape(-1).astype(np.int64),
            class_names=tuple(self.class_names[old] for old in present),
            queries=sides["queries"],
            gallery=sides["gallery"],
            cameras=None if self.cameras is None else self.cameras[kept],
            judgements=judgements,
            draws=draws,
            name=self.name,
        )

    def first_draw(self) -> ImageSet:
        """Return the set with the queries and gallery of its first draw only; itself where there are no draws."""
        if not self.draws:
            return self
        return ImageSet(
            self.images,
            self.labels,
            class_names=self.class_names,
            queries=self.queries,
            gallery=self.gallery,
            cameras=self.cameras,
            name=self.name,
        )

    def classes(self, wanted: ArrayLike) -> ImageSet:
        """Return the images of some classes, in their order; `wanted` are class numbers."""
        chosen = _chosen(wanted, self.num_classes, f"classes of {self.name}")
        return self.subset(np.flatnonzero(np.isin(self.labels, chosen)))

    def split_classes(self, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
        """Split the classes randomly into a set for training and one for validation.

        Args:
            fraction: Fraction of the classes used for validation, between 0 and 1; rounded to whole classes.
            seed: Seed of the split, 0 or more.

        Returns:
            (training, validation); no class is in both, every image is in one.

        Raises:
            ValueError: `fraction` leaves one of the two without a class.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: expected the fraction of classes for validation, in (0, 1), got {fraction}")
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


@dataclass(frozen=True, eq=False, repr=False)
class DataSet:
    """A named data set under one protocol.

    Attributes:
        name: Name of the data set.
        protocol: How it is divided.
        train: Training images; None where there are none.
        test: Test images, with queries and gallery where the protocol has them.
        credit: Whom to credit where the images are used; None for a user's own.
        validation: Images on which training selects its best epoch; None where training holds out some classes.
    """

    name: str
    protocol: str
    train: ImageSet | None
    test: ImageSet
    credit: str | None
    validation: ImageSet | None = None

    def require_classes(self) -> DataSet:
        """Return the data set itself.

        Raises:
            ValueError: Its test images are judged one by one, so that its labels say nothing of what is right.
        """
        if self.test.judgements is not None:
            raise ValueError(
                f"dataset: need classes, and {self.name} lists the relevant images of each query; it can be evaluated "
                "(diml evaluate, diml compare)"
            )
        return self

    def __repr__(self) -> str:
        validation = "" if self.validation is None else f", validation={self.validation!r}"
        return f"DataSet({self.name!r}, {self.protocol!r}, train={self.train!r}{validation}, test={self.test!r})"


def numbered(keys: Iterable[Any]) -> tuple[Indices, list[Any]]:
    """Number keys 0, 1, ... in their sorted order; return (N,) int64 numbers and the distinct keys."""
    keys = list(keys)
    distinct = sorted(set(keys))
    number = {key: place for place, key in enumerate(distinct)}
    return np.array([number[key] for key in keys], dtype=np.int64), distinct


def _listed(images: Sequence[ImageLike] | NDArray[Any] | Tensor, name: str) -> Sequence[ImageLike]:
    """Return the images as a tuple, with paths as `Path`, or as the view of a data set that they are."""
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError(f"images of {name}: expected a list of images, got one; put it in a list")
    lone = isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.shape[-1] in (1, 3, 4))
    if lone and images.ndim == 3:  # type: ignore[union-attr]
        raise ValueError(f"images of {name}: expected a batch of 4 axes, got shape {tuple(images.shape)}")  # type: ignore[union-attr]
    listed: Sequence[ImageLike] = images if isinstance(images, DatasetImages) else tuple(map(_as_path, images))
    if not len(listed):
        raise ValueError(f"images of {name}: expected at least one image, got none")
    return listed


def _as_path(image: Any) -> Any:
    return Path(image) if isinstance(image, str | os.PathLike) and not isinstance(image, Path) else image


def _numbered_labels(
    labels: Any, class_names: tuple[str, ...], name: str, what: str = "labels"
) -> tuple[Indices, tuple[str, ...]]:
    """Return (N,) class numbers, read-only, and the class names, derived from the labels where none are given."""
    values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else labels
    given = np.asarray(values)
    if given.ndim == 1 and len(given) and all(isinstance(label, str) for label in values):
        if not class_names:
            numbers, distinct = numbered(str(label) for label in values)
            return _whole_numbers(numbers, f"{what} of {name}"), tuple(distinct)
        number = {word: place for place, word in enumerate(class_names)}
        for label in values:
            if label not in number:
                raise ValueError(f"{what} of {name}: {label!r} is not in class_names; {did_you_mean(label, number)}")
        return _whole_numbers([number[label] for label in values], f"{what} of {name}"), class_names
    if given.ndim != 1 or (given.size and not np.issubdtype(given.dtype, np.integer)):
        got = f"{given.dtype} of shape {given.shape}"
        raise ValueError(f"{what} of {name}: expected whole numbers or strings of shape (N,), got {got}")
    numbers = _whole_numbers(given, f"{what} of {name}")
    if not class_names:
        values, places = np.unique(numbers, return_inverse=True)
        return _whole_numbers(places.reshape(-1), f"{what} of {name}"), tuple(map(str, values))
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(class_names)):
        raise ValueError(
            f"{what} of {name}: expected 0 to {len(class_names) - 1} for {len(class_names)} "
            f"class names, got {numbers.min()} to {numbers.max()}"
        )
    return numbers, class_names


def _whole_numbers(values: ArrayLike, what: str) -> Indices:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"{what}: expected whole numbers of shape (N,), got {array.dtype} of shape {array.shape}")
    array = array.astype(np.int64)  # a copy, so that it can be made read-only
    array.setflags(write=False)
    return array


def _chosen(values: ArrayLike, limit: int, what: str) -> Indices:
    """Return distinct indices below `limit`, at least one, or raise ValueError."""
    array = _whole_numbers(values, what)
    if not len(array):
        raise ValueError(f"{what}: expected at least one index, got none")
    if array.min() < 0 or array.max() >= limit:
        raise ValueError(f"{what}: expected 0 to {limit - 1}, got {array.min()} to {array.max()}")
    if len(np.unique(array)) != len(array):
        raise ValueError(f"{what}: {len(array) - len(np.unique(array))} indices are repeated; give each once")
    return array


def _moved(rows: Indices, position: Indices) -> Indices:
    """New numbers of the images that remain; `position` is -1 for the others."""
    new: Indices = position[rows]
    return new[new >= 0]


def _check_judgements(judgements: Judgements | None, queries: Indices | None, images: int, name: str) -> None:
    """Raise where judgements do not belong to these queries and images."""
    if judgements is None:
        return
    if queries is None:
        raise ValueError(f"judgements of {name}: need queries and gallery as well, which they judge")
    if len(judgements) != len(queries):
        raise ValueError(f"judgements of {name}: expected {len(queries)}, one per query, got {len(judgements)}")
    if judgements.largest >= images:
        raise ValueError(f"judgements of {name}: expected image rows 0 to {images - 1}, got {judgements.largest}")


def _unwrapped(dataset: Any, row: int) -> tuple[Any, int]:
    """Follow `torch.utils.data.Subset`s to the data set below them and the row there."""
    while isinstance(dataset, Subset):
        dataset, row = dataset.dataset, int(dataset.indices[row])
    return dataset, row


def _labels_of(dataset: Any) -> list[Any]:
    """Return the labels of a data set: its attribute `targets` where it can be relied on, else those of its items."""
    count = len(dataset)
    if not count:
        return []
    base, _ = _unwrapped(dataset, 0)
    targets = getattr(base, "targets", None)
    if targets is not None and getattr(base, "target_transform", None) is None and len(targets) == len(base):
        rows = [_unwrapped(dataset, row)[1] for row in range(count)]
        labels = [_plain_label(targets[row]) for row in rows]
        if all(_plain_label(_label(dataset[row], row)) == labels[row] for row in {0, count - 1}):
            return labels
    return [_plain_label(_label(dataset[row], row)) for row in range(count)]


def _label(item: Any, row: int) -> Any:
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise TypeError(
            f"dataset: need items (image, label), got {type(item).__name__} in item {row}; pass labels=... for a data "
            "set without labels"
        )
    return item[1]


def _plain_label(label: Any) -> Any:
    """Return a tensor or numpy scalar as the plain number."""
    return label.item() if isinstance(label, Tensor | np.generic) and label.ndim == 0 else label


def _labels_of_column(dataset: Any, columns: Columns) -> list[Any]:
    """Return the labels of a data set of dicts."""
    if columns.label is None:
        raise ValueError(
            "label: which column has the labels? Name it, or pass labels=... for a data set without labels"
        )
    base, _ = _unwrapped(dataset, 0)
    labels = column_labels(base, columns.label)
    return [_plain_label(labels[_unwrapped(dataset, row)[1]]) for row in range(len(dataset))]


def _class_names_of(dataset: Any, labels: Any, of_column: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Return the data set's own class names where they fit the labels, else none."""
    base, _ = _unwrapped(dataset, 0) if len(dataset) else (dataset, 0)
    names = getattr(base, "classes", None) if of_column is None else of_column
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return ()
    values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    fits = np.issubdtype(values.dtype, np.integer) and values.size and 0 <= values.min() <= values.max() < len(names)
    return tuple(names) if fits else ()


def _thumbnails(images: ImageSet) -> str:
    """Return a row of small images spread over the set, or nothing where any of them cannot be read."""
    rows = np.unique(np.linspace(0, len(images) - 1, _THUMBNAILS).astype(int))
    tags = []
    try:
        for row in rows:
            image = load_image(images.images[int(row)], max_pixels=_THUMBNAIL_PIXELS)
            image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=80)
            source = base64.b64encode(stream.getvalue()).decode()
            caption = html.escape(images.class_names[images.labels[row]], quote=True)
            tags.append(f'<img src="data:image/jpeg;base64,{source}" title="{caption}" alt="{caption}">')
    except Exception:  # a data set of the user may raise anything, and a repr must not fail
        return ""
    return f"<div>{' '.join(tags)}</div>"
