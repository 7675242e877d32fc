"""Data sets by name: load one, or compare its files with the known totals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from diml.data import class_folders, emoji, image_lists, landmarks, reid
from diml.data.csv_file import load_csv, read_rows
from diml.data.image_sets import DataSet
from diml.data.inventory import Inventory, size_differences
from diml.data.registry import DataSetInfo, dataset_info
from diml.extending import need_registered
from diml.spelling import did_you_mean

_Root = str | Path | None


@dataclass(frozen=True)
class _Reader:
    """How a data set is read from disk: `load` it under a protocol, `inspect` its files, `locate` its folder."""

    load: Callable[[DataSetInfo, _Root, str], DataSet]
    inspect: Callable[[DataSetInfo, _Root], Inventory] | None = None
    locate: Callable[[DataSetInfo, str | Path], Path | None] | None = None


_BENCHMARK: Final = _Reader(
    class_folders.load_benchmark, class_folders.inspect_benchmark, class_folders.locate_benchmark
)
_CAMERAS: Final = _Reader(reid.load_cameras, reid.inspect_cameras, reid.locate_cameras)
_REVISITED: Final = _Reader(landmarks.load_revisited, landmarks.inspect_revisited, landmarks.locate_revisited)
_READERS: Final = MappingProxyType(
    {
        "cub200": _BENCHMARK,
        "cars196": _BENCHMARK,
        "online_products": _Reader(
            image_lists.load_online_products, image_lists.inspect_online_products, image_lists.locate_online_products
        ),
        "grocery": _Reader(image_lists.load_grocery, image_lists.inspect_grocery, image_lists.locate_grocery),
        "orl": _Reader(class_folders.load_orl, class_folders.inspect_orl, class_folders.locate_orl),
        "emoji": _Reader(emoji.load_emoji, emoji.inspect_emoji, emoji.locate_emoji),
        "inshop": _Reader(image_lists.load_inshop, image_lists.inspect_inshop, image_lists.locate_inshop),
        "market1501": _CAMERAS,
        "msmt17": _Reader(reid.load_msmt17, reid.inspect_msmt17, reid.locate_msmt17),
        "veri776": _CAMERAS,
        "vehicleid": _Reader(reid.load_vehicleid, reid.inspect_vehicleid, reid.locate_vehicleid),
        "inaturalist2018": _Reader(
            image_lists.load_inaturalist, image_lists.inspect_inaturalist, image_lists.locate_inaturalist
        ),
        "roxford5k": _REVISITED,
        "rparis6k": _REVISITED,
        "gldv2": _Reader(landmarks.load_gldv2, landmarks.inspect_gldv2, landmarks.locate_gldv2),
        "folder": _Reader(class_folders.load_folder, class_folders.inspect_folder),
        "csv": _Reader(load_csv),
    }
)


def _reader(name: str) -> _Reader:
    """How a known data set is read; one of your own by its registered function."""
    if name in _READERS:
        return _READERS[name]
    make = need_registered("datasets", name)

    def load(info: DataSetInfo, root: _Root, protocol: str) -> DataSet:
        data = make(root, protocol) if "protocol" in inspect.signature(make).parameters else make(root)
        if not isinstance(data, DataSet):
            raise TypeError(f"dataset: need a DataSet from {info.name!r}, got {type(data).__name__}")
        return data

    return _Reader(load)


@dataclass(frozen=True)
class DataSetCheck:
    """The files found of a data set, compared with what is known of it.

    Attributes:
        name: Name of the data set.
        place: Its folder or file.
        images: Number of images found.
        classes: Number of classes that have an image.
        expected_images: Known total; None for a user's own images.
        expected_classes: Known total; None for a user's own images.
        differences: What is missing or differs, one line each.
    """

    name: str
    place: Path
    images: int
    classes: int
    expected_images: int | None
    expected_classes: int | None
    differences: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing or differs."""
        return not self.differences


def load_dataset(name: str, root: str | Path | None = None, *, protocol: str | None = None) -> DataSet:
    """Load a data set by name.

    Args:
        name: One of `dataset_names()`. `folder` and `csv` load the user's own images.
        root: Folder that contains the data set's folder, or that folder itself; for `folder` and `csv` the folder or
            file. May be None only for `orl` and `emoji`, which are then fetched.
        protocol: How it is divided into training, queries and gallery; default the first protocol of the data set
            (`diml datasets` lists them).

    Returns:
        Images for training (None where there are none) and for testing.

    Raises:
        ValueError: Unknown name or protocol, or a list with invalid lines.
        FileNotFoundError: The data set is missing or incomplete; the message says what was expected where and how to
            get it.

    Warns:
        IncompleteDataSetWarning: It can be used but does not have its known size.

    Example:
        >>> load_dataset("grocery", "data", protocol="class_disjoint")  # doctest: +SKIP
    """
    info = dataset_info(name)
    chosen = info.protocols[0] if protocol is None else protocol
    if chosen not in info.protocols:
        raise ValueError(f"protocol: {name} has no {chosen!r}; {did_you_mean(chosen, info.protocols)}")
    return _reader(name).load(info, root, chosen)


def check_dataset(name: str, root: str | Path | None = None) -> DataSetCheck:
    """Count the images and classes of a data set and compare them with the known totals.

    Args:
        name: One of `dataset_names()`.
        root: As for `load_dataset`.

    Raises:
        ValueError: Unknown name, or a list with invalid lines.
        FileNotFoundError: The data set is missing altogether.
    """
    info = dataset_info(name)
    if name not in _READERS:
        data = load_dataset(name, root)
        parts = [part for part in (data.train, data.test) if part is not None]
        present = {part.class_names[label] for part in parts for label in np.unique(part.labels)}
        return DataSetCheck(name, Path(str(root)), sum(map(len, parts)), len(present), None, None, ())
    inventory = _READERS[name].inspect
    if inventory is None:
        rows = read_rows(info, root)
        return DataSetCheck(name, Path(str(root)), len(rows), len({row.label for row in rows}), None, None, ())
    found = inventory(info, root)
    differences = size_differences(info, found) + found.faults
    images, classes = len(found.paths), found.classes_present()
    return DataSetCheck(name, found.folder, images, classes, info.images, info.classes, differences)


def place_or_fetch(name: str, root: str | Path) -> str | Path | None:
    """`root`, or None for a data set that is missing there and can be fetched, as `load_dataset` takes it."""
    return None if dataset_info(name).assets and locate_dataset(name, root) is None else root


def locate_dataset(name: str, root: str | Path) -> Path | None:
    """Return the folder of a named data set below `root`, or None, without counting or fetching anything."""
    locate = _reader(dataset_info(name).name).locate
    return None if locate is None else locate(dataset_info(name), root)
