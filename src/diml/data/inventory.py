"""The files of a data set on disk, before any protocol divides them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from diml.data.image_sets import ImageSet, Indices
from diml.data.registry import DataSetInfo

_EXAMPLES: Final = 3


class IncompleteDataSetWarning(UserWarning):
    """A data set can be loaded but does not have its known size, so results are not comparable with published ones."""


@dataclass(frozen=True, eq=False)
class Inventory:
    """The images of a data set found on disk, and what is missing.

    Attributes:
        folder: Folder of the images.
        paths: N existing images.
        labels: (N,), int64, 0 to C - 1.
        class_names: C names.
        class_ids: C class numbers in the data set's own files.
        parts: N names of the part that lists each image (`train`, `test`); empty strings where there are no lists.
        faults: What is missing, one line each, with counts and examples; empty for a complete data set.
        cameras: (N,), int64 camera numbers, or None.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: Indices
    class_names: tuple[str, ...]
    class_ids: tuple[int | str, ...]
    parts: tuple[str, ...]
    faults: tuple[str, ...]
    cameras: Indices | None = None

    def image_set(self, name: str, keep: Indices | None = None) -> ImageSet:
        """Return all images, or those with the indices `keep`, as a leave-one-out set."""
        everything = ImageSet(self.paths, self.labels, class_names=self.class_names, cameras=self.cameras, name=name)
        return everything if keep is None else everything.subset(keep)

    def query_gallery_set(self, name: str) -> ImageSet:
        """Return the images of the parts `query` and `gallery` as a set with these two sides."""
        keep = self.in_parts("query", "gallery")
        parts = np.array(self.parts, dtype=str)[keep]
        images = self.image_set(name, keep)
        return ImageSet(
            images.images,
            images.labels,
            class_names=images.class_names,
            queries=np.flatnonzero(parts == "query"),
            gallery=np.flatnonzero(parts == "gallery"),
            cameras=images.cameras,
            name=name,
        )

    def in_parts(self, *parts: str) -> Indices:
        """Return the indices of the images listed in these parts."""
        return np.flatnonzero(np.isin(np.array(self.parts, dtype=str), parts)).astype(np.int64)

    def classes_present(self) -> int:
        """Return the number of classes that have an image."""
        return len(np.unique(self.labels))


def find_folder(info: DataSetInfo, root: str | os.PathLike[str], markers: Sequence[str]) -> Path | None:
    """Return the data set's folder, `root/NAME` or `root` itself: the first that contains one of the markers."""
    base = Path(root).expanduser()
    for folder in (*(base / name for name in info.folders), base):
        if any((folder / marker).exists() for marker in markers):
            return folder
    return None


def missing_data(info: DataSetInfo, root: str | os.PathLike[str] | None) -> FileNotFoundError:
    """Return the error for a missing data set: what was expected where, what was found, how to get it."""
    remedy = f"Expected: {info.layout}. To get it: {info.how_to_get}"
    if root is None:
        return FileNotFoundError(f"root: {info.name} needs the folder that contains it, got None. {remedy}")
    base = Path(root).expanduser()
    if base.is_dir():
        inside = sorted(entry.name for entry in base.iterdir())
        listed = ", ".join(inside[:5]) + (", ..." if len(inside) > 5 else "")
        found = f"that folder has {listed}" if inside else "that folder is empty"
    else:
        found = "that is a file, not a folder" if base.exists() else "there is no such folder"
    return FileNotFoundError(f"root: {info.name} is not in {base} ({found}). {remedy}")


def require_complete(info: DataSetInfo, inventory: Inventory) -> None:
    """Raise for a data set with missing files; warn if it does not have its known size.

    Raises:
        FileNotFoundError: Listed images or all images of a class are missing.
    """
    if inventory.faults:
        raise FileNotFoundError(
            f"{info.name} in {inventory.folder} is incomplete: {'; '.join(inventory.faults)}. "
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
        f"{have:,} {what}, expected {known:,}"
        for what, (have, known) in found.items()
        if known is not None and have != known
    )


def examples(names: Sequence[object]) -> str:
    """Return the first few names for a message, with an ellipsis where there are more."""
    return ", ".join(str(name) for name in names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
