"""Data sets with one folder per class: `cub200`, `cars196`, `orl` and any `folder`."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from diml.assets import fetch_asset
from diml.data.image_sets import DataSet
from diml.data.inventory import Inventory, examples, find_folder, missing_data, require_complete
from diml.data.listing import FoundImages, LeftOutWarning, find_images, folder_names, left_out_line, nfc
from diml.data.registry import DataSetInfo

_PERSON: Final = re.compile(r"s(\d+)")


def locate_benchmark(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `cub200` or `cars196`, which contains `images`, or None."""
    return find_folder(info, root, ["images"])


def inspect_benchmark(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Find the images of `cub200` or `cars196`: sorted class folders inside `images`."""
    folder = None if root is None else locate_benchmark(info, root)
    if folder is None:
        raise missing_data(info, root)
    names = folder_names(folder / "images")
    if not names:
        raise missing_data(info, folder / "images")
    return _inspect_class_folders(find_images(folder / "images"), names)


def load_benchmark(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the first half of the classes for training and the second half for testing, as in the papers."""
    inventory = inspect_benchmark(info, root)
    require_complete(info, inventory)
    return _halves(info, inventory, protocol)


def locate_orl(info: DataSetInfo, root: str | Path) -> Path | None:
    """Return the folder of `orl`, which contains `s1`, or None."""
    return find_folder(info, root, ["s1"])


def inspect_orl(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Find the faces below `root`, or those of the cached asset if `root` is None; people in numerical order."""
    folder = fetch_asset("orl_faces") if root is None else locate_orl(info, root)
    if folder is None:
        raise missing_data(info, root)
    people = [name for name in folder_names(folder) if _PERSON.fullmatch(name)]
    inventory = _inspect_class_folders(find_images(folder), sorted(people, key=lambda name: int(name[1:])))
    # Numerical order of the images too (10.pgm after 9.pgm): the order decides ties.
    order = sorted(range(len(inventory.paths)), key=lambda i: (inventory.labels[i], _number(inventory.paths[i])))
    return dataclasses.replace(inventory, paths=tuple(inventory.paths[index] for index in order))


def load_orl(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load all faces, or with `class_disjoint` the first half of the people for training, the second for testing."""
    inventory = inspect_orl(info, root)
    require_complete(info, inventory)
    return whole_or_halves(info, inventory, protocol)


def inspect_folder(info: DataSetInfo, root: str | Path | None) -> Inventory:
    """Find the images of a user's folder; sub-folders without an image are not classes.

    Warns:
        LeftOutWarning: Files are no images, images lie outside of the class folders, or sub-folders have none.
    """
    if root is None:
        raise missing_data(info, root)
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise missing_data(info, folder)
    found = find_images(folder)
    filled = {name.partition("/")[0] for name in found.names if "/" in name}
    told = _left_out(found, [name for name in folder_names(folder) if name not in filled])
    if not filled:
        error = missing_data(info, folder)
        raise FileNotFoundError(f"{error}. Left out: {told}") if told else error
    if told:
        warnings.warn(LeftOutWarning(f"{folder}: left out {told}"), stacklevel=4)
    return _inspect_class_folders(found, sorted(filled))


def _left_out(found: FoundImages, empty: Sequence[str]) -> str:
    """What of a folder of class folders is not used, in one line; empty where that is nothing."""
    loose = sum("/" not in name for name in found.names)
    counts = Counter(found.left_out)
    if loose:
        counts[f"image{'s' * (loose != 1)} outside of class folders"] = loose
    told = f"{len(empty):,} sub-folders without an image ({examples(empty)})" if empty else ""
    return "; ".join(filter(None, (left_out_line(counts, found.closed), told)))


def load_folder(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load all images, or with `class_disjoint` the first half of the classes for training, the second for testing."""
    inventory = inspect_folder(info, root)
    return whole_or_halves(info, inventory, protocol, inventory.folder.resolve().name)


def _inspect_class_folders(found: FoundImages, names: Iterable[str]) -> Inventory:
    """Group the images by class folders, in the given order; those outside of them are left out."""
    of_class: dict[str, list[Path]] = {nfc(name): [] for name in names}
    for name, path in zip(found.names, found.paths, strict=True):
        of_class.get(nfc(name.partition("/")[0]) if "/" in name else "", []).append(path)
    kept = [name for name, images in of_class.items() if images]
    empty = [name for name, images in of_class.items() if not images]
    paths = [path for name in kept for path in of_class[name]]
    labels = [number for number, name in enumerate(kept) for _ in of_class[name]]
    faults = (f"{len(empty):,} of {len(of_class):,} class folders have no image ({examples(empty)})",) if empty else ()
    return Inventory(
        folder=found.folder,
        paths=tuple(paths),
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(kept),
        class_ids=tuple(range(len(kept))),
        parts=("",) * len(paths),
        faults=faults,
    )


def whole_or_halves(info: DataSetInfo, inventory: Inventory, protocol: str, name: str | None = None) -> DataSet:
    """All images for testing, or with `class_disjoint` the first half of the classes for training, the second for it.

    `name` is that of the image set, by default the data set's.
    """
    if protocol == "class_disjoint":
        return _halves(info, inventory, protocol)
    return DataSet(info.name, protocol, None, inventory.image_set(name or info.name), info.credit)


def _halves(info: DataSetInfo, inventory: Inventory, protocol: str) -> DataSet:
    """The first half of the classes for training, the second for testing."""
    classes = len(inventory.class_names)
    if classes < 2:
        raise FileNotFoundError(
            f"{info.name} in {inventory.folder}: {classes} class, and class_disjoint needs at least 2. "
            f"Expected: {info.layout}. To get it: {info.how_to_get}"
        )
    first = inventory.labels < classes // 2
    train = inventory.image_set(f"{info.name} train", np.flatnonzero(first))
    test = inventory.image_set(f"{info.name} test", np.flatnonzero(~first))
    return DataSet(info.name, protocol, train, test, info.credit)


def _number(path: Path) -> tuple[int, str]:
    return (int(path.stem) if path.stem.isdecimal() else 0, path.name)
