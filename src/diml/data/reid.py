"""Re-identification of people and vehicles: `market1501`, `msmt17`, `veri776` and `vehicleid`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from diml.data.image_sets import DataSet, ImageSet, Indices
from diml.data.inventory import Inventory, find_folder, missing_data, require_complete
from diml.data.list_files import Entry, found_images, read_lists
from diml.data.listing import is_image_name
from diml.data.registry import DataSetInfo

_FOLDERS: Final[Mapping[str, Mapping[str, str]]] = {
    "market1501": {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"},
    "veri776": {"train": "image_train", "query": "image_query", "gallery": "image_test"},
}
#: Identity and camera at the beginning of a file name: 0002_c1s1_000451_03.jpg, 0001_c001_00016450_0.jpg.
_FILE_NAME: Final = re.compile(r"(-?\d+)_c(\d+)")
#: Identity of images that are neither right nor wrong.
_JUNK: Final = "-1"

_MSMT_LISTS: Final = {
    "train": "list_train.txt",
    "val": "list_val.txt",
    "query": "list_query.txt",
    "gallery": "list_gallery.txt",
}
#: Folders of the images for training and for testing: those of the first release, and those with blurred faces.
_MSMT_FOLDERS: Final = (("train", "test"), ("mask_train_v2", "mask_test_v2"))

_VEHICLE_LISTS: Final = {"small": "test_list_800.txt", "medium": "test_list_1600.txt", "large": "test_list_2400.txt"}
#: Images and vehicles of the test lists; those of the list for training stand in the registry together with `large`.
_VEHICLE_SIZES: Final = {"small": (6_493, 800), "medium": (13_377, 1_600), "large": (19_777, 2_400)}
#: Galleries that are drawn; with the seeds 0, 1, ...
VEHICLE_DRAWS: Final = 10


def locate_cameras(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `market1501` or `veri776`, which contains the folder of the queries, or None."""
    return find_folder(info, root, [_FOLDERS[info.name]["query"]])


def inspect_cameras(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Find the images of `market1501` or `veri776`; identity and camera are in their names, junk is left out."""
    folder = None if root is None else locate_cameras(info, root)
    if folder is None:
        raise missing_data(info, root)
    entries: list[Entry] = []
    faults: list[str] = []
    for part, name in _FOLDERS[info.name].items():
        found = _named_images(folder / name, part)
        entries += found
        if not found:
            faults.append(f"the folder {folder / name} has no image")
    return found_images(folder, entries, faults)


def load_cameras(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load query and gallery images with their cameras; distractors of the gallery are wrong for every query."""
    inventory = inspect_cameras(info, root)
    require_complete(info, inventory)
    train = inventory.image_set(f"{info.name} train", inventory.in_parts("train"))
    return DataSet(info.name, protocol, train, inventory.query_gallery_set(f"{info.name} test"), info.credit)


def locate_msmt17(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `msmt17`, which contains the lists, or None."""
    return find_folder(info, root, list(_MSMT_LISTS.values())[2:])


def inspect_msmt17(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Compare the lists of `msmt17` with the images on disk, under the folder names of either release."""
    folder = None if root is None else locate_msmt17(info, root)
    if folder is None:
        raise missing_data(info, root)
    train, test = next((names for names in _MSMT_FOLDERS if (folder / names[1]).is_dir()), _MSMT_FOLDERS[0])
    entries, faults = read_lists(folder, _MSMT_LISTS, _msmt_entry)
    # People are numbered from 0 in the lists for training and again in those for testing.
    placed = [
        dataclasses.replace(
            entry,
            path=f"{train if entry.part in ('train', 'val') else test}/{entry.path}",
            label=f"{'train' if entry.part in ('train', 'val') else 'test'} {entry.label:04}",
        )
        for entry in entries
    ]
    return found_images(folder, placed, faults)


def load_msmt17(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load query and gallery images with their cameras; the images of `list_val.txt` are trained on, as published."""
    inventory = inspect_msmt17(info, root)
    require_complete(info, inventory)
    train = inventory.image_set(f"{info.name} train", inventory.in_parts("train", "val"))
    return DataSet(info.name, protocol, train, inventory.query_gallery_set(f"{info.name} test"), info.credit)


def locate_vehicleid(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `vehicleid`, which contains the lists in `train_test_split`, or None."""
    return find_folder(info, root, ["train_test_split"])


def inspect_vehicleid(info: DataSetInfo, root: str | Path | None, protocol: str = "large") -> Inventory:
    """Compare the list for training and one of those for testing with the images on disk."""
    folder = None if root is None else locate_vehicleid(info, root)
    if folder is None:
        raise missing_data(info, root)
    lists = {"train": "train_list.txt", "test": _VEHICLE_LISTS[protocol]}
    entries, faults = read_lists(folder / "train_test_split", lists, _vehicle_entry)
    return found_images(folder / "image", entries, faults)


def load_vehicleid(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the images of a test list with ten drawn galleries of one image of each vehicle; the others are queries."""
    inventory = inspect_vehicleid(info, root, protocol)
    known = (info.images, info.classes)
    images, vehicles = (
        None if total is None else total - large + own
        for total, large, own in zip(known, _VEHICLE_SIZES["large"], _VEHICLE_SIZES[protocol], strict=True)
    )
    require_complete(dataclasses.replace(info, images=images, classes=vehicles), inventory)
    train = inventory.image_set(f"{info.name} train", inventory.in_parts("train"))
    test = inventory.image_set(f"{info.name} {protocol}", inventory.in_parts("test"))
    return DataSet(info.name, protocol, train, with_drawn_galleries(test, VEHICLE_DRAWS), info.credit)


def with_drawn_galleries(images: ImageSet, draws: int) -> ImageSet:
    """Return the images with galleries of one random image of each class, all others being queries.

    Args:
        images: Leave-one-out; some class needs two images.
        draws: Number of galleries, drawn with the seeds 0, 1, ...
    """
    order = np.argsort(images.labels, kind="stable")
    sizes = np.bincount(images.labels, minlength=images.num_classes)
    first = np.cumsum(sizes) - sizes
    drawn: list[tuple[Indices, Indices]] = []
    for seed in range(draws):
        gallery = order[first + np.random.default_rng(seed).integers(sizes)]
        drawn.append((np.setdiff1d(np.arange(len(images)), gallery), np.sort(gallery)))
    return ImageSet(
        images.images,
        images.labels,
        class_names=images.class_names,
        cameras=images.cameras,
        draws=drawn,
        name=images.name,
    )


def _named_images(folder: Path, part: str) -> list[Entry]:
    """Read the names of the images in a folder, sorted; other files and junk are skipped.

    Raises:
        ValueError: The name of an image does not begin with identity and camera.
    """
    if not folder.is_dir():
        return []
    entries = []
    for name in sorted(entry.name for entry in os.scandir(folder)):
        if name.startswith(".") or not is_image_name(name):
            continue
        found = _FILE_NAME.match(name)
        if found is None:
            raise ValueError(f"{folder}: expected names such as 0002_c1s1_000451_03.jpg, got {name!r}")
        if found[1] != _JUNK:
            entries.append(Entry(part, f"{folder.name}/{name}", found[1], f"camera {int(found[2])}"))
    return entries


def _msmt_entry(part: str, line: str) -> Entry:
    """Read `0000/0000_000_01_0303morning_0015_0.jpg 0`: path, person; the camera is the third number of the name."""
    path, label = line.split()
    _, _, camera, *_ = path.rpartition("/")[2].split("_")
    return Entry(part, path, int(label), f"camera {int(camera)}")


def _vehicle_entry(part: str, line: str) -> Entry:
    """Read `0308003 1`: name of the image, vehicle."""
    name, label = line.split()
    return Entry(part, f"{name}.jpg", int(label))
