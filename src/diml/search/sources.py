"""Sources of an index's images: a folder, or a CSV file with metadata."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from diml.data.images import BadImageError, load_image
from diml.data.inventory import images_below
from diml.search.filters import ColumnType
from diml.search.store import RESERVED, Value

#: Columns of every image of an index, whatever its source: where it came from, and the sha256 of its file.
OWN_COLUMNS: Final[Mapping[str, ColumnType]] = {"source": "text", "path": "text", "content": "text"}
_BOOLEANS: Final = {"true": True, "false": False}
_INTEGER: Final = re.compile(r"[-+]?\d{1,18}")


@dataclass(frozen=True, repr=False)
class SourceListing:
    """Images to be indexed, in order.

    Args:
        source: the folder or file, absolute; an image is removed only when it is missing from its own source.
        folder: the folder that `paths` are relative to.
        paths: N paths as text, with `/`.
        cells: N mappings column -> text, as read.
        columns: the type of each column.
    """

    source: str
    folder: Path
    paths: tuple[str, ...]
    cells: tuple[Mapping[str, str], ...]
    columns: Mapping[str, ColumnType]

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        return f"SourceListing({self.source!r}, images={len(self)}, columns={list(self.columns)})"

    def file(self, row: int) -> Path:
        """Return the file of an image."""
        return self.folder / self.paths[row]

    def name(self, row: int) -> str:
        """Return the id of an image: 32 hexadecimal digits of source and path."""
        return hashlib.sha256(f"{self.source}\0{self.paths[row]}".encode()).hexdigest()[:32]

    def metadata(self, row: int, columns: Mapping[str, ColumnType]) -> dict[str, Value]:
        """Return the cells of an image as values of the given column types.

        Raises:
            ValueError: a cell does not have its column's type.
        """
        found: dict[str, Value] = {}
        for name, cell in self.cells[row].items():
            try:
                found[name] = _value(cell, columns[name])
            except ValueError as error:
                raise ValueError(
                    f"{self.source}: {self.paths[row]}: {name} needs {columns[name]}, got {cell!r}"
                ) from error
        return found


def image_file(metadata: Mapping[str, Value]) -> Path:
    """Return the file of a stored image, from its columns `source` and `path`."""
    source = Path(str(metadata["source"]))
    return (source.parent if source.suffix.lower() == ".csv" else source) / str(metadata["path"])


def known_file(metadata: Mapping[str, Value]) -> Path | None:
    """Return `image_file`, or None in an index that does not record where its images are."""
    return image_file(metadata) if {"source", "path"} <= metadata.keys() else None


def indexed_image(metadata: Mapping[str, Value]) -> Image.Image | str:
    """The image of a hit from its file; or why not: the file is unknown, unreadable or another one now."""
    file = known_file(metadata)
    if file is None:
        return "the index does not record where its images are"
    try:
        content = file.read_bytes()
        recorded = metadata.get("content")
        if recorded is not None and hashlib.sha256(content).hexdigest() != recorded:
            return f"the file {file} has changed since it was indexed"
        return load_image(content, name=str(file))
    except (OSError, BadImageError) as error:
        missing = isinstance(error, FileNotFoundError)
        return f"the file {file} is missing" if missing else f"the file {file} cannot be read ({error})"


def list_source(place: str | os.PathLike[str]) -> SourceListing:
    """List the images of a folder and its subfolders, or of a CSV file.

    A folder gives the column `label`: the first subfolder on the path to the image. A CSV file has a column `path`,
    relative to the file or absolute; its other columns become metadata, each of the narrowest type that fits all cells.

    Raises:
        FileNotFoundError: the folder or file does not exist.
        ValueError: no images, or a CSV file with invalid columns or lines.
    """
    path = Path(place).expanduser().resolve()
    if path.is_dir():
        return _list_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"images: {path} does not exist; give a folder of images or a CSV file")
    if path.suffix.lower() != ".csv":
        raise ValueError(f"images: need a folder or a .csv file, got {path}; give the folder that contains it")
    return _list_csv(path)


def _list_folder(folder: Path) -> SourceListing:
    paths = tuple(file.relative_to(folder).as_posix() for file in images_below(folder))
    if not paths:
        raise ValueError(f"images: {folder} and its subfolders contain none; to empty an index, use diml index remove")
    cells = tuple({"label": path.split("/")[0] if "/" in path else ""} for path in paths)
    return SourceListing(str(folder), folder, paths, cells, {"label": "text"})


def _list_csv(file: Path) -> SourceListing:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            names = tuple(reader.fieldnames or ())
            _check_columns(file, names)
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: need a CSV text file in UTF-8 ({error})") from error
    _check_lines(file, rows)
    others = [name for name in names if name != "path"]
    cells = tuple({name: row[name].strip() for name in others} for _, row in rows)
    columns = {name: _type_of([entry[name] for entry in cells]) for name in others}
    return SourceListing(str(file), file.parent, tuple(row["path"].strip() for _, row in rows), cells, columns)


def _check_columns(file: Path, names: Sequence[str]) -> None:
    if "path" not in names:
        raise ValueError(f"{file}: need a first line with the column path, got {','.join(names) or 'nothing'}")
    taken = (RESERVED | OWN_COLUMNS.keys()) - {"path"}
    for name in names:
        if name in taken or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) or names.count(name) > 1:
            need = f"distinct columns of letters, digits and _, none of {', '.join(sorted(taken))}"
            raise ValueError(f"{file}: need {need}; got {name!r}; rename it")


def _check_lines(file: Path, rows: Sequence[tuple[int, Mapping[str | None, str | None]]]) -> None:
    seen: dict[str, int] = {}
    for line, row in rows:
        if None in row or None in row.values():
            raise ValueError(
                f"{file}, line {line}: the number of cells differs from the number of columns in the first line"
            )
        path = (row["path"] or "").strip()
        if not path:
            raise ValueError(f"{file}, line {line}: path is empty")
        if path in seen:
            raise ValueError(f"{file}, line {line}: {path} is already in line {seen[path]}")
        seen[path] = line
    if not rows:
        raise ValueError(f"{file}: need one line per image below the first, got none")


def _type_of(cells: Sequence[str]) -> ColumnType:
    """Return the narrowest type that fits every non-empty cell."""
    filled = [cell for cell in cells if cell]
    kinds: tuple[ColumnType, ...] = ("boolean", "integer", "number")
    for kind in kinds:
        if filled and all(_fits(cell, kind) for cell in filled):
            return kind
    return "text"


def _fits(cell: str, kind: ColumnType) -> bool:
    try:
        _value(cell, kind)
    except ValueError:
        return False
    return True


def _value(cell: str, kind: ColumnType) -> Value:
    """Convert a cell; None when it is empty."""
    if not cell:
        return None
    if kind == "text":
        return cell
    if kind == "boolean":
        if cell.lower() not in _BOOLEANS:
            raise ValueError(cell)
        return _BOOLEANS[cell.lower()]
    if kind == "integer":
        if not _INTEGER.fullmatch(cell):
            raise ValueError(cell)
        return int(cell)
    value = float(cell)
    if value - value != 0:  # NaN and infinity cannot be compared in every database
        raise ValueError(cell)
    return value
