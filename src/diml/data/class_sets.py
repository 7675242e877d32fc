"""Data sets of one folder a class: `cub200`, `cars196`, `orl` and any `folder`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Final

import numpy as np

from diml.assets import fetch_asset
from diml.data.image_sets import DataSet
from diml.data.inventory import (
    Inventory,
    class_folders,
    find_folder,
    folder_names,
    images_below,
    missing_data,
    require_whole,
)
from diml.data.registry import DataSetInfo

_PERSON: Final = re.compile(r"s(\d+)")


def locate_benchmark(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `cub200` or `cars196` that has `images` inside, or None."""
    return find_folder(info, root, ["images"])


def take_stock_of_benchmark(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Take stock of `cub200` or `cars196`: sorted class folders inside `images`."""
    folder = None if root is None else locate_benchmark(info, root)
    if folder is None:
        raise missing_data(info, root)
    names = folder_names(folder / "images")
    if not names:
        raise missing_data(info, folder / "images")
    return class_folders(folder / "images", names)


def load_benchmark(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """First half of the classes for training, second half for testing, as the papers do."""
    inventory = take_stock_of_benchmark(info, root)
    require_whole(info, inventory)
    return _halves(info, inventory, protocol)


def locate_orl(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder that has `s1` inside, or None."""
    return find_folder(info, root, ["s1"])


def take_stock_of_orl(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Take stock of the faces below `root`, or of the cached asset when `root` is None; people in numerical order."""
    folder = fetch_asset("orl_faces") if root is None else locate_orl(info, root)
    if folder is None:
        raise missing_data(info, root)
    people = [name for name in folder_names(folder) if _PERSON.fullmatch(name)]
    inventory = class_folders(folder, sorted(people, key=lambda name: int(name[1:])))
    # 10.pgm comes after 9.pgm, too: the order of images decides ties.
    order = sorted(range(len(inventory.paths)), key=lambda i: (inventory.labels[i], _shot(inventory.paths[i])))
    return dataclasses.replace(inventory, paths=tuple(inventory.paths[index] for index in order))


def load_orl(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """`all`: every image asks all others; `class_disjoint`: first half of the people trains, second half tests."""
    inventory = take_stock_of_orl(info, root)
    require_whole(info, inventory)
    if protocol == "class_disjoint":
        return _halves(info, inventory, protocol)
    return DataSet(info.name, protocol, None, inventory.image_set(info.name), info.credit)


def take_stock_of_folder(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Take stock of a user's folder; sub-folders without a image are no class."""
    if root is None:
        raise missing_data(info, root)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise missing_data(info, folder)
    names = [name for name in folder_names(folder) if images_below(folder / name)]
    if not names:
        raise missing_data(info, folder)
    return class_folders(folder, names)


def load_folder(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Every image asks all others; or the first half of the classes trains and the second tests."""
    inventory = take_stock_of_folder(info, root)
    if protocol == "class_disjoint":
        return _halves(info, inventory, protocol)
    return DataSet(info.name, protocol, None, inventory.image_set(inventory.folder.resolve().name), info.credit)


def _halves(info: DataSetInfo, inventory: Inventory, protocol: str) -> DataSet:
    classes = len(inventory.class_names)
    if classes < 2:
        raise FileNotFoundError(
            f"{info.name} in {inventory.folder}: {classes} class where at least 2 are needed, to train and to test. "
            f"Expected: {info.layout}. To get it: {info.how_to_get}"
        )
    first = inventory.labels < classes // 2
    train = inventory.image_set(f"{info.name} train", np.flatnonzero(first))
    test = inventory.image_set(f"{info.name} test", np.flatnonzero(~first))
    return DataSet(info.name, protocol, train, test, info.credit)


def _shot(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else 0, path.name)
