"""Data sets by name: load one, or count what is there against the known totals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from diml.data import class_sets, listed_sets
from diml.data.csv_file import load_csv, read_rows
from diml.data.image_sets import DataSet
from diml.data.inventory import Inventory, size_differences
from diml.data.registry import DataSetInfo, dataset_info, nearest

_Root = str | Path | None

_LOAD: Final = MappingProxyType(
    {
        "cub200": class_sets.load_benchmark,
        "cars196": class_sets.load_benchmark,
        "online_products": listed_sets.load_online_products,
        "grocery": listed_sets.load_grocery,
        "orl": class_sets.load_orl,
        "folder": class_sets.load_folder,
        "csv": load_csv,
    }
)
_TAKE_STOCK: Final[MappingProxyType[str, Callable[[DataSetInfo, _Root], Inventory]]] = MappingProxyType(
    {
        "cub200": class_sets.take_stock_of_benchmark,
        "cars196": class_sets.take_stock_of_benchmark,
        "online_products": listed_sets.take_stock_of_online_products,
        "grocery": listed_sets.take_stock_of_grocery,
        "orl": class_sets.take_stock_of_orl,
        "folder": class_sets.take_stock_of_folder,
    }
)
_LOCATE: Final[MappingProxyType[str, Callable[[DataSetInfo, str | Path], Path | None]]] = MappingProxyType(
    {
        "cub200": class_sets.locate_benchmark,
        "cars196": class_sets.locate_benchmark,
        "online_products": listed_sets.locate_online_products,
        "grocery": listed_sets.locate_grocery,
        "orl": class_sets.locate_orl,
    }
)


@dataclass(frozen=True)
class DataSetCheck:
    """What is there of a data set, against what is known of it.

    Attributes:
        name: The data set.
        place: Its folder or file.
        images: Number of images found.
        classes: Number of classes that have a image.
        expected_images: Known total; None for a user's own images.
        expected_classes: Known total.
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
        """Whether everything known is there."""
        return not self.differences


def load_dataset(name: str, root: str | Path | None = None, *, protocol: str | None = None) -> DataSet:
    """Load a data set by name.

    Args:
        name: One of `dataset_names()`.
        root: Folder that has the data set's folder inside, or that folder itself; for `folder` and `csv` the folder
            or file. None only for `orl`, which is then fetched.
        protocol: How it is divided; default the first of `dataset_info(name).protocols`.

    Returns:
        Images to train on (None where there are none) and to test on.

    Raises:
        ValueError: Unknown name or protocol, or a list with bad lines.
        FileNotFoundError: It is missing or not whole; the message says what was expected where and how to get it.

    Warns:
        IncompleteDataSetWarning: It can be used but is not of its known size.

    Example:
        >>> load_dataset("grocery", "data", protocol="class_disjoint")  # doctest: +SKIP
    """
    info = dataset_info(name)
    chosen = info.protocols[0] if protocol is None else protocol
    if chosen not in info.protocols:
        raise ValueError(f"protocol: {name} has no {chosen!r}; {nearest(chosen, info.protocols)}")
    return _LOAD[name](info, root, chosen)


def check_dataset(name: str, root: str | Path | None = None) -> DataSetCheck:
    """Count the images and classes of a data set and compare them with the known totals.

    Args:
        name: One of `dataset_names()`.
        root: As for `load_dataset`.

    Raises:
        ValueError: Unknown name, or a list with bad lines.
        FileNotFoundError: There is nothing of it.
    """
    info = dataset_info(name)
    if name == "csv":
        rows = read_rows(info, root)
        return DataSetCheck(name, Path(str(root)), len(rows), len({row.label for row in rows}), None, None, ())
    found = _TAKE_STOCK[name](info, root)
    differences = size_differences(info, found) + found.faults
    images, classes = len(found.paths), found.classes_present()
    return DataSetCheck(name, found.folder, images, classes, info.images, info.classes, differences)


def locate_dataset(name: str, root: str | Path) -> Path | None:
    """Return the folder of a known data set below `root`, or None; a quick look, nothing is counted or fetched."""
    info = dataset_info(name)
    return _LOCATE[name](info, root) if name in _LOCATE else None
