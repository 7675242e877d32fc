"""Data sets whose images are listed in text files: `online_products` and `grocery`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from diml.data.image_sets import DataSet, ImageSet, numbered
from diml.data.inventory import FileListing, Inventory, examples, find_folder, missing_data, require_complete
from diml.data.registry import DataSetInfo

_PRODUCT_LISTS: Final = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
_GROCERY_LISTS: Final = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
_GROCERY_TRAINING_CLASSES: Final = 40  # class_disjoint: fine classes 0-39 for training, 40-80 for testing


@dataclass(frozen=True)
class _Entry:
    """One line of a list: the part it belongs to, the image's path below the image folder, its class number."""

    part: str
    path: str
    label: int


def locate_online_products(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder that has the lists in `Info_Files`, or next to the images as in the archive; or None."""
    lists = list(_PRODUCT_LISTS.values())
    return find_folder(info, root, [f"Info_Files/{name}" for name in lists] + lists)


def inspect_online_products(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Compare the lists of `online_products` with the images on disk."""
    folder = None if root is None else locate_online_products(info, root)
    if folder is None:
        raise missing_data(info, root)
    lists = folder / "Info_Files" if (folder / "Info_Files").is_dir() else folder
    images = folder / "images" if (folder / "images").is_dir() else folder
    entries, faults = _read_lists(lists, _PRODUCT_LISTS, _product_entry)
    return _compare(images, entries, faults, _product_names(entries))


def load_online_products(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the images of `Ebay_train.txt` for training and those of `Ebay_test.txt` for testing, leave-one-out."""
    inventory = inspect_online_products(info, root)
    require_complete(info, inventory)
    train = inventory.image_set(f"{info.name} train", inventory.in_parts("train"))
    test = inventory.image_set(f"{info.name} test", inventory.in_parts("test"))
    return DataSet(info.name, protocol, train, test, info.credit)


def locate_grocery(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder that contains the lists, which is `dataset` in the public repository; or None."""
    lists = list(_GROCERY_LISTS.values())
    folder = find_folder(info, root, lists + [f"dataset/{name}" for name in lists])
    if folder is None or any((folder / name).exists() for name in lists):
        return folder
    return folder / "dataset"


def inspect_grocery(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Compare the lists of `grocery` with the photos on disk; order: train, val, test."""
    folder = None if root is None else locate_grocery(info, root)
    if folder is None:
        raise missing_data(info, root)
    entries, faults = _read_lists(folder, _GROCERY_LISTS, _grocery_entry)
    return _compare(folder, entries, faults, _grocery_names(folder))


def load_grocery(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load test photos as queries and the others as gallery, or with `class_disjoint` divide by class number."""
    inventory = inspect_grocery(info, root)
    require_complete(info, inventory)
    if protocol == "class_disjoint":
        first = np.array(inventory.class_ids)[inventory.labels] < _GROCERY_TRAINING_CLASSES
        if first.all() or not first.any():
            raise FileNotFoundError(
                f"{info.name} in {inventory.folder} has only classes on one side of number "
                f"{_GROCERY_TRAINING_CLASSES}, and class_disjoint needs both. Expected: {info.layout}. To get it: "
                f"{info.how_to_get}"
            )
        train = inventory.image_set(f"{info.name} train", np.flatnonzero(first))
        test = inventory.image_set(f"{info.name} test", np.flatnonzero(~first))
        return DataSet(info.name, protocol, train, test, info.credit)
    gallery = inventory.in_parts("train", "val")
    test = ImageSet(
        inventory.paths,
        inventory.labels,
        class_names=inventory.class_names,
        queries=inventory.in_parts("test"),
        gallery=gallery,
        name=f"{info.name} test",
    )
    return DataSet(info.name, protocol, inventory.image_set(f"{info.name} train", gallery), test, info.credit)


def _product_entry(part: str, line: str) -> _Entry | None:
    """Read `image_id class_id super_class_id path`; the header gives None."""
    _, label, _, path = line.split(maxsplit=3)
    return None if label == "class_id" else _Entry(part, path.strip(), int(label))


def _grocery_entry(part: str, line: str) -> _Entry | None:
    """Read `path, fine class, coarse class`."""
    path, fine, _ = line.rsplit(",", 2)
    return _Entry(part, path.strip(), int(fine))


def _read_lists(
    folder: Path, lists: Mapping[str, str], read_line: Callable[[str, str], _Entry | None]
) -> tuple[list[_Entry], list[str]]:
    """Read the lists of all parts; return the entries, and a fault for each list that is missing or empty."""
    entries: list[_Entry] = []
    faults: list[str] = []
    for part, name in lists.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"the list {path} is missing")
            continue
        before = len(entries)
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                entries += filter(None, [_read_entry(path, number, part, line, read_line)])
        if len(entries) == before:
            faults.append(f"the list {path} contains no image")
    return entries, faults


def _read_entry(
    path: Path, number: int, part: str, line: str, read_line: Callable[[str, str], _Entry | None]
) -> _Entry | None:
    try:
        return read_line(part, line)
    except ValueError as error:
        expected = (read_line.__doc__ or "").split("`")[1]
        raise ValueError(f"{path}, line {number}: expected `{expected}`, got {line.strip()!r}") from error


def _compare(images: Path, entries: list[_Entry], faults: list[str], names: Mapping[int, str]) -> Inventory:
    """Look up every listed image below the folder `images`."""
    listing = FileListing()
    found = [listing.find(images / entry.path) for entry in entries]
    missing = [entry.path for entry, path in zip(entries, found, strict=True) if path is None]
    if missing:
        faults = [
            *faults,
            f"{len(missing):,} of {len(entries):,} listed images are missing below {images} ({examples(missing)})",
        ]
    present = [(entry, path) for entry, path in zip(entries, found, strict=True) if path is not None]
    labels, class_ids = numbered(entry.label for entry, _ in present)
    return Inventory(
        folder=images,
        paths=tuple(path for _, path in present),
        labels=labels,
        class_names=tuple(names.get(class_id, str(class_id)) for class_id in class_ids),
        class_ids=tuple(class_ids),
        parts=tuple(entry.part for entry, _ in present),
        faults=tuple(faults),
    )


def _product_names(entries: list[_Entry]) -> dict[int, str]:
    """Name a product by its kind and number, `bicycle 1`, as the lists have no names."""
    return {entry.label: f"{Path(entry.path).parent.name.removesuffix('_final')} {entry.label}" for entry in entries}


def _grocery_names(folder: Path) -> dict[int, str]:
    """Read class names from `classes.csv`, if it exists."""
    path = folder / "classes.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) >= 2 and row[1].strip().isdecimal()]
    return {int(row[1]): row[0].strip() for row in rows}
