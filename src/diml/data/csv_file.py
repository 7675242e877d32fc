"""Any images listed in a CSV file: columns `path,label,split`, optionally `is_query,is_gallery` and `camera`."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from diml.data.csv_table import CsvRow, LineFault, folder_of_paths, read_csv
from diml.data.image_sets import DataSet, ImageSet
from diml.data.listing import FileListing, joined, nfc
from diml.data.registry import DataSetInfo
from diml.spelling import did_you_mean

_REQUIRED: Final = ("path", "label", "split")
_FLAGS: Final = ("is_query", "is_gallery")
#: Either of them: images of one class and camera are ignored for each other in an evaluation.
_CAMERA: Final = ("camera", "sequence")
#: The box of the object, which `diml audit` and `diml explain` read.
_BOX: Final = ("x0", "y0", "x1", "y1")
#: Label of images that are neither right nor wrong.
_JUNK: Final = "-1"
_SPLITS: Final = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_YES: Final = frozenset({"1", "1.0", "true", "yes", "t", "y"})
_NO: Final = frozenset({"0", "0.0", "false", "no", "f", "n"})
_UNSET: Final = frozenset({"", "nan", "none", "null"})


class _Row(NamedTuple):
    line: int
    path: str
    identity: str
    label: str
    split: str
    is_query: bool | None
    is_gallery: bool | None
    camera: str | None


class UnusedColumnsWarning(UserWarning):
    """A CSV file has columns that are not read."""


def load_csv(info: DataSetInfo, root: str | Path | None, protocol: str) -> DataSet:
    """Load the images of a CSV file.

    Columns: `path` (relative to the file, or absolute), `label` (any text), `split` (`train`, `validation` or `val`,
    `test`) and, for images that are not for training, `is_query` and `is_gallery` (`1/0`, `true/false`, `yes/no`).
    An image with neither cell filled is both query and gallery, and never retrieves itself; if this holds for all
    images, the evaluation is leave-one-out. `camera` (or `sequence`; any text): for a query, images of its label and
    camera are ignored. Images for testing with the label -1 are junk and left out. Protocol `test` uses the test
    images, or the validation images of a file without test images; protocol `validation` the validation images.
    Training selects its best epoch on the validation images where there are both.

    Warns:
        UnusedColumnsWarning: Other columns, which are not read.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: Columns are missing, or lines are invalid: each is named with its number.
    """
    rows = read_rows(info, root)
    splits = {row.split for row in rows}
    chosen = "validation" if protocol == "validation" or "test" not in splits else "test"
    if chosen not in splits:
        wanted = "validation" if protocol == "validation" else "test or validation"
        raise ValueError(
            f"{root}: no line with split {wanted}, so there is nothing to test on; splits: {_list(splits)}"
        )
    stem = Path(str(root)).stem
    parts = {part: [row for row in rows if row.split == part and row.label != _JUNK] for part in splits}
    training, validation = parts.get("train"), parts.get("validation") if chosen == "test" else None
    return DataSet(
        name=info.name,
        protocol=protocol,
        train=_image_set(f"{stem} train", training) if training else None,
        test=_image_set(f"{stem} {chosen}", parts[chosen]),
        credit=info.credit,
        validation=_image_set(f"{stem} validation", validation) if validation else None,
    )


def read_rows(info: DataSetInfo, root: str | Path | None) -> list[_Row]:
    """Read all lines; raise ValueError with every invalid one."""
    if root is None:
        raise FileNotFoundError(f"root: {info.name} needs the CSV file, got None. Expected: {info.layout}")
    file = Path(root).expanduser()
    if not file.is_file():
        found = "that is a folder" if file.is_dir() else "there is no such file"
        raise FileNotFoundError(f"root: {found}: {file}. Expected: {info.layout}. {info.how_to_get}")
    table = read_csv(file)
    _check_columns(file, table.columns)
    listing = FileListing()
    folder = folder_of_paths(file, [row.cells["path"] for row in table.rows], listing)
    rows, faults = _read_lines(table.rows, folder, listing)
    table.require_sound(faults)
    if not rows:
        raise ValueError(f"{file}: expected one line per image below the header, got none")
    return rows


def _read_lines(table: Sequence[CsvRow], folder: Path, listing: FileListing) -> tuple[list[_Row], list[LineFault]]:
    """The rows, and the faults of invalid ones."""
    rows: list[_Row] = []
    faults: list[LineFault] = []
    seen: dict[str, int] = {}
    start = os.path.join(folder, "")  # noqa: PTH118
    for cells in table:
        try:
            row = _read_row(cells, start, listing)
        except ValueError as error:
            faults.append(LineFault(cells.line, str(error)))
            continue
        first = seen.setdefault(row.identity, row.line)
        if first != row.line:
            faults.append(LineFault(row.line, f"the image {row.path} is already in line {first}"))
        else:
            rows.append(row)
    return rows, faults


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    missing = [name for name in _REQUIRED if name not in columns]
    if missing:
        raise ValueError(
            f"{file}: the columns {', '.join(missing)} are missing; expected a first line with "
            f"{','.join(_REQUIRED)}[,{','.join(_FLAGS)}], separated by commas, got {','.join(columns) or 'nothing'}"
        )
    if set(_CAMERA) <= set(columns):
        raise ValueError(f"{file}: need one of the columns {' and '.join(_CAMERA)}, got both; they mean the same")
    unused = [column for column in columns if column not in (*_REQUIRED, *_FLAGS, *_CAMERA, *_BOX)]
    for column in unused:
        # A misspelt flag column would be ignored, and the images evaluated under another protocol unnoticed.
        near = difflib.get_close_matches(column.lower(), _FLAGS, n=1, cutoff=0.75)
        if near and near[0] not in columns:
            raise ValueError(f"{file}: unknown column {column!r}; did you mean {near[0]!r}?")
    if unused:
        read = ", ".join((*_REQUIRED, *_FLAGS, *_CAMERA))
        warnings.warn(UnusedColumnsWarning(f"{file}: not used: {', '.join(unused)}; read are {read}"), stacklevel=5)


def _read_row(row: CsvRow, folder: str, listing: FileListing) -> _Row:
    cells = row.cells
    path, label, split = cells["path"], cells["label"], cells["split"]
    if not path:
        raise ValueError("path is empty")
    if not label:
        raise ValueError("label is empty")
    if split.lower() not in _SPLITS:
        raise ValueError(f"split {split!r}: {did_you_mean(split, _SPLITS)}")
    is_query, is_gallery = _read_flag(cells, "is_query"), _read_flag(cells, "is_gallery")
    split = _SPLITS[split.lower()]
    if split == "train" and label == _JUNK:
        raise ValueError(f"label {_JUNK} means junk, which cannot be trained on; give the image a label, or omit it")
    if split == "train" and (is_query or is_gallery):
        raise ValueError("a training image cannot be query or gallery")
    if split != "train" and not (is_query or is_gallery) and (is_query is not None or is_gallery is not None):
        raise ValueError("is neither query nor gallery; set one flag, or leave both empty to use it as both")
    file = joined(folder, path)  # a Path for each of a hundred thousand lines takes seconds
    found = listing.look_up(file)
    if found is None:
        raise ValueError(f"no such image: {file}{listing.why_not(file)}")
    camera = cells.get("camera", cells.get("sequence"))
    if camera == "":
        raise ValueError("the camera is empty; fill it in every line, or omit the column")
    return _Row(row.line, *found, nfc(label), split, is_query, is_gallery, camera)


def _read_flag(cells: Mapping[str, str], name: str) -> bool | None:
    cell = cells.get(name)
    if not cell:
        return None
    word = cell.lower()
    if word in _UNSET:
        return None
    if word not in _YES | _NO:
        raise ValueError(f"{name} {cell!r}: expected 1 or 0, true or false, yes or no, or an empty cell")
    return word in _YES


def _image_set(name: str, rows: list[_Row]) -> ImageSet:
    paths, labels = [row.path for row in rows], [row.label for row in rows]
    cameras = [row.camera for row in rows if row.camera is not None] or None
    if not rows:
        raise ValueError(f"{name}: every image is junk (label {_JUNK})")
    unset = [row.is_query is None and row.is_gallery is None for row in rows]
    if all(unset):
        return ImageSet(paths, labels, cameras=cameras, name=name)
    queries = np.flatnonzero([row.is_query or both for row, both in zip(rows, unset, strict=True)])
    gallery = np.flatnonzero([row.is_gallery or both for row, both in zip(rows, unset, strict=True)])
    for side, chosen in (("is_query", queries), ("is_gallery", gallery)):
        if not len(chosen):
            raise ValueError(f"{name}: no image has {side}; both queries and gallery images are needed")
    return ImageSet(paths, labels, queries=queries, gallery=gallery, cameras=cameras, name=name)


def _list(words: set[str]) -> str:
    return ", ".join(sorted(words))
