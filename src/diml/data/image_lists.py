"""Data sets whose images are listed in text files: `online_products`, `grocery`, `inshop` and `inaturalist2018`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from diml.data.csv_table import read_csv
from diml.data.image_sets import DataSet, ImageSet
from diml.data.inventory import Inventory, find_folder, missing_data, require_complete
from diml.data.list_files import Entry, found_images, read_lists
from diml.data.registry import DataSetInfo

_PRODUCT_LISTS: Final = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
_GROCERY_LISTS: Final = {"train": "train.txt", "val": "val.txt", "test": "test.txt"}
_GROCERY_TRAINING_CLASSES: Final = 40  # class_disjoint: fine classes 0-39 for training, 40-80 for testing


_PARTITION: Final = "list_eval_partition.txt"
_NATURE_LISTS: Final = {"train": "Inaturalist_train_set1.txt", "test": "Inaturalist_test_set1.txt"}


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
    entries, faults = read_lists(lists, _PRODUCT_LISTS, _product_entry)
    return found_images(images, entries, faults, _product_names(entries))


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
    entries, faults = read_lists(folder, _GROCERY_LISTS, _grocery_entry)
    return found_images(folder, entries, faults, _grocery_names(folder))


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


def locate_inshop(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder that has the list of the partition, or its folder `Eval` as in the archive; or None."""
    return find_folder(info, root, [_PARTITION, f"Eval/{_PARTITION}"])


def inspect_inshop(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Compare the list of `inshop` with the images on disk."""
    folder = None if root is None else locate_inshop(info, root)
    if folder is None:
        raise missing_data(info, root)
    listed = folder / "Eval" if (folder / "Eval" / _PARTITION).exists() else folder
    images = folder / "Img" if (folder / "Img" / "img").is_dir() else folder
    entries, faults = read_lists(listed, {"": _PARTITION}, _inshop_entry)
    return found_images(images, entries, faults)


def load_inshop(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the query images and the gallery of the partition for testing, its other images for training."""
    inventory = inspect_inshop(info, root)
    require_complete(info, inventory)
    train = inventory.image_set(f"{info.name} train", inventory.in_parts("train"))
    return DataSet(info.name, protocol, train, inventory.query_gallery_set(f"{info.name} test"), info.credit)


def locate_inaturalist(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder that has the lists of the split, or their folder `Inat_dataset_splits`; or None."""
    lists = list(_NATURE_LISTS.values())
    return find_folder(info, root, lists + [f"Inat_dataset_splits/{name}" for name in lists])


def inspect_inaturalist(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Compare the lists of the metric-learning split with the images on disk; a species is a class."""
    folder = None if root is None else locate_inaturalist(info, root)
    if folder is None:
        raise missing_data(info, root)
    lists = folder / "Inat_dataset_splits" if (folder / "Inat_dataset_splits").is_dir() else folder
    entries, faults = read_lists(lists, _NATURE_LISTS, _nature_entry)
    return found_images(folder, entries, faults)


def load_inaturalist(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the species of the first list for training and those of the second for testing, leave-one-out."""
    inventory = inspect_inaturalist(info, root)
    require_complete(info, inventory)
    train = inventory.image_set(f"{info.name} train", inventory.in_parts("train"))
    test = inventory.image_set(f"{info.name} test", inventory.in_parts("test"))
    return DataSet(info.name, protocol, train, test, info.credit)


def _inshop_entry(part: str, line: str) -> Entry | None:
    """Read `img/MEN/Denim/id_00000080/01_1_front.jpg id_00000080 train|query|gallery`; the header gives None."""
    if line.strip().isdecimal() or line.split()[0] == "image_name":
        return None
    path, item, status = line.split()
    if status not in ("train", "query", "gallery"):
        raise ValueError(f"status {status!r}")
    return Entry(status, path, item)


def _nature_entry(part: str, line: str) -> Entry:
    """Read `train_val2018/Plantae/7477/3b60c9486db1d2ee875f11a669fbde4a.jpg`, the species being the two folders."""
    path = line.strip()
    _, kingdom, species, _ = path.rsplit("/", 3)
    return Entry(part, path, f"{kingdom}/{species}")


def _product_entry(part: str, line: str) -> Entry | None:
    """Read `image_id class_id super_class_id path`; the header gives None."""
    _, label, _, path = line.split(maxsplit=3)
    return None if label == "class_id" else Entry(part, path.strip(), int(label))


def _grocery_entry(part: str, line: str) -> Entry | None:
    """Read `path, fine class, coarse class`."""
    path, fine, _ = line.rsplit(",", 2)
    return Entry(part, path.strip(), int(fine))


def _product_names(entries: list[Entry]) -> dict[int | str, str]:
    """Name a product by its kind and number, `bicycle 1`, as the lists have no names."""
    return {entry.label: f"{Path(entry.path).parent.name.removesuffix('_final')} {entry.label}" for entry in entries}


def _grocery_names(folder: Path) -> dict[int | str, str]:
    """Read class names from `classes.csv`, if it exists."""
    path = folder / "classes.csv"
    if not path.is_file():
        return {}
    table = read_csv(path)
    table.require_sound()
    if len(table.columns) < 2:
        return {}
    name, number = table.columns[:2]
    return {int(row.cells[number]): row.cells[name] for row in table.rows if row.cells[number].isdecimal()}
