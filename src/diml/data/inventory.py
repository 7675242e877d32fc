"""What lies on disk of a data set, before any protocol divides it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from diml.data.image_sets import ImageSet, Indices
from diml.data.registry import DataSetInfo

_COMMON: Final = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif")
_SCIENCE: Final = (".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2")
IMAGE_SUFFIXES: Final = frozenset(_COMMON + _SCIENCE)
_EXAMPLES: Final = 3


class IncompleteDataSetWarning(UserWarning):
    """A data set can be loaded but is not of its known size, so results are not comparable with published ones."""


@dataclass(frozen=True, eq=False)
class Inventory:
    """The images found and the faults seen.

    Attributes:
        folder: Where the data set lies.
        paths: N images that are there.
        labels: (N,), int64, 0 to C - 1.
        class_names: C names.
        class_ids: C numbers by which the data set's own files call the classes.
        parts: N names of the part that each image is listed in (`train`, `test`); empty strings when none is.
        faults: What is missing, one line each, with counts and first examples; empty when nothing is.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: Indices
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    parts: tuple[str, ...]
    faults: tuple[str, ...]

    def image_set(self, name: str, keep: Indices | None = None) -> ImageSet:
        """Return all images, or those with the indices `keep`, as a leave-one-out set."""
        whole = ImageSet(name=name, paths=self.paths, labels=self.labels, class_names=self.class_names)
        return whole if keep is None else whole.subset(keep)

    def in_parts(self, *parts: str) -> Indices:
        """Return the indices of the images listed in these parts."""
        return np.flatnonzero(np.isin(np.array(self.parts, dtype=str), parts)).astype(np.int64)

    def classes_present(self) -> int:
        """Return the number of classes that have a image."""
        return len(np.unique(self.labels))


def find_folder(info: DataSetInfo, root: str | os.PathLike[str], markers: Sequence[str]) -> Path | None:
    """Return the data set's folder: `root/NAME` or `root` itself, whichever has one of the markers inside."""
    base = Path(root).expanduser()
    for folder in (*(base / name for name in info.folders), base):
        if any((folder / marker).exists() for marker in markers):
            return folder
    return None


def missing_data(info: DataSetInfo, root: str | os.PathLike[str] | None) -> FileNotFoundError:
    """Return the error for a data set that is not there at all: what was expected where, what is, how to get it."""
    remedy = f"Expected: {info.layout}. To get it: {info.how_to_get}"
    if root is None:
        return FileNotFoundError(f"root: {info.name} needs the folder where it lies, got None. {remedy}")
    base = Path(root).expanduser()
    if base.is_dir():
        inside = sorted(entry.name for entry in base.iterdir())
        listed = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        found = f"that folder has {listed}" if inside else "that folder is empty"
    else:
        found = "that is a file, not a folder" if base.exists() else "there is no such folder"
    return FileNotFoundError(f"root: {info.name} is not in {base} ({found}). {remedy}")


def require_whole(info: DataSetInfo, inventory: Inventory) -> None:
    """Refuse a data set with faults; warn when it is whole in itself but not of its known size.

    Raises:
        FileNotFoundError: Listed images or whole classes are missing.
    """
    if inventory.faults:
        raise FileNotFoundError(
            f"{info.name} in {inventory.folder} is not whole: {'; '.join(inventory.faults)}. "
            f"Expected: {info.layout}. To get it: {info.how_to_get}"
        )
    differences = size_differences(info, inventory)
    if differences:
        warnings.warn(
            f"{info.name} in {inventory.folder}: {'; '.join(differences)}; results are not comparable with "
            "published ones",
            IncompleteDataSetWarning,
            stacklevel=4,
        )


def size_differences(info: DataSetInfo, inventory: Inventory) -> tuple[str, ...]:
    """Return how the numbers of images and classes differ from the known totals, one line each."""
    found = {"images": (len(inventory.paths), info.images), "classes": (inventory.classes_present(), info.classes)}
    return tuple(
        f"{have:,} {what} where {known:,} are known"
        for what, (have, known) in found.items()
        if known is not None and have != known
    )


def class_folders(folder: Path, names: Iterable[str]) -> Inventory:
    """Take stock of class folders `folder/NAME`, in the given order, nested images included."""
    paths: list[Path] = []
    labels: list[int] = []
    kept: list[str] = []
    empty: list[str] = []
    for name in names:
        images = images_below(folder / name)
        if images:
            labels += [len(kept)] * len(images)
            paths += images
            kept.append(name)
        else:
            empty.append(name)
    total = len(kept) + len(empty)
    faults = (f"{len(empty):,} of {total:,} class folders have no image ({examples(empty)})",) if empty else ()
    return Inventory(
        folder=folder,
        paths=tuple(paths),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(kept),
        class_ids=tuple(range(len(kept))),
        parts=("",) * len(paths),
        faults=faults,
    )


def folder_names(folder: Path) -> list[str]:
    """Return the sorted names of the sub-folders, hidden ones left out."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_below(folder: Path) -> list[Path]:
    """Return all images in a folder and below, sorted; hidden files and folders and other suffixes are left out."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place) / name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
        ]
    return sorted(found)


class Listing:
    """Answers which files exist, reading each folder once: a hundred thousand single questions are slow on a network.

    A name that differs only in upper and lower case is found too (`.JPG` in a list, `.jpg` on disk).
    """

    def __init__(self) -> None:
        self._folders: dict[Path, tuple[set[str], dict[str, str]]] = {}

    def find(self, path: Path) -> Path | None:
        """Return the file as it is called on disk, or None."""
        folder = path.parent
        if folder not in self._folders:
            names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
            self._folders[folder] = (names, {name.lower(): name for name in names})
        names, by_lower = self._folders[folder]
        if path.name in names:
            return path
        found = by_lower.get(path.name.lower())
        return None if found is None else folder / found


def examples(names: Sequence[object]) -> str:
    """Return the first few names for a message, with a sign that there are more."""
    return ", ".join(str(name) for name in names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
