"""Sources of an index's images: a folder, or a CSV file with metadata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from diml.data.csv_table import CsvTable, LineFault, folder_of_paths, read_csv
from diml.data.images import BadImage, BadImageError, printable, read_file
from diml.data.listing import FileListing, find_images, joined, left_out_line, nfc
from diml.search.cells import cell_value, guessed_type
from diml.search.filters import ColumnType
from diml.search.names import name_fault
from diml.search.store import Value
from diml.spelling import did_you_mean, shown

#: Columns of every image of an index, whatever its source: where it came from, and the sha256 of its file.
OWN_COLUMNS: Final[Mapping[str, ColumnType]] = {"source": "text", "path": "text", "content": "text"}
#: Labels from folders, of `list_source`.
_FOLDERS: Final = ("parent", "top")
_NOT_UTF8: Final = "its name is not UTF-8, and an index keeps texts; rename it"


@dataclass(frozen=True, repr=False)
class SourceListing:
    """Images to be indexed, in order.

    Args:
        source: the folder or file, absolute; a folder whose name ends like a CSV file's has a / at its end. An image
            is removed only when it is missing from its own source.
        folder: the folder that `paths` are relative to.
        paths: N paths as text, with `/`; absolute only where they are outside of `folder`.
        cells: N mappings column -> text, as read.
        columns: the type of each column that has a value, or whose type was named.
        named_types: the columns whose types were named.
        lines: N lines of a CSV file; empty of a folder.
        bad: images that cannot be indexed, whatever is in them.
        left_out: files of the folder that are no images, see `FoundImages`.
        closed: folders below it that cannot be opened; their images are neither listed nor missing.
        label_from: as of `list_source`, where it was given or kept.
    """

    source: str
    folder: Path
    paths: tuple[str, ...]
    cells: tuple[Mapping[str, str], ...]
    columns: Mapping[str, ColumnType]
    named_types: frozenset[str] = frozenset()
    lines: tuple[int, ...] = ()
    bad: tuple[BadImage, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    closed: tuple[str, ...] = ()
    label_from: str | None = None

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
        """Return the cells of an image as values of the given column types, which they fit."""
        cells = self.cells[row].items()
        return {name: cell_value(cell, columns[name]) for name, cell in cells if name in columns}

    def place(self, row: int) -> str:
        """Where an image is listed, for messages."""
        line = f", line {self.lines[row]}" if self.lines else ""
        return f"{self.source}{line} ({self.paths[row]})"

    def notice(self) -> str | None:
        """What of a folder was left out, in one line."""
        told = left_out_line(self.left_out, self.closed)
        return None if told is None else f"{self.source}: left out {told}"


def image_file(metadata: Mapping[str, Value]) -> Path:
    """Return the file of a stored image, from its columns `source` and `path`."""
    source = str(metadata["source"])
    is_file = source.lower().endswith(".csv")  # a folder of such a name has a / at its end
    return (Path(source).parent if is_file else Path(source)) / str(metadata["path"])


def known_file(metadata: Mapping[str, Value]) -> Path | None:
    """Return `image_file`, or None in an index that does not record where its images are."""
    return image_file(metadata) if {"source", "path"} <= metadata.keys() else None


def indexed_content(metadata: Mapping[str, Value]) -> bytes | str:
    """The bytes of the file of a hit; or why not: the file is unknown, unreadable or another one now."""
    file = known_file(metadata)
    if file is None:
        return "the index does not record where its images are"
    try:
        content = read_file(file)
    except (OSError, BadImageError) as error:
        missing = isinstance(error, FileNotFoundError)
        return f"the file {file} is missing" if missing else f"the file {file} cannot be read ({error})"
    recorded = metadata.get("content")
    same = recorded is None or hashlib.sha256(content).hexdigest() == recorded
    return content if same else f"the file {file} has changed since it was indexed"


def list_source(
    place: str | os.PathLike[str],
    types: Mapping[str, ColumnType] | None = None,
    *,
    label_from: str | None = None,
    kept: Mapping[str, str] | None = None,
) -> SourceListing:
    """List the images of a folder and its subfolders, or of a CSV file.

    A folder gives the column `label`: a folder on the path to the image. A CSV file has a column `path`,
    relative to the file or absolute; its other columns become metadata. The column `label` is text; the others have the
    type that is named, else the narrowest that is exact for all their cells (see `diml.search.cells`).

    Args:
        place: the folder or file.
        types: column -> type, see `diml.search.cells.read_types`.
        label_from: what `label` is: "top", the first folder below `place` on the path to the image; "parent", the
            folder that the image is in (both are empty where the image is in `place` itself); or the name of a column
            of a CSV file, which then means the column also where it is called `top` or `parent`. When omitted "top" of
            a folder, and a CSV file's own column `label`, if it has one.
        kept: source -> `label_from` of those of an index, for where it is omitted; see `diml.search.labels`.

    Raises:
        FileNotFoundError: the folder or file does not exist.
        ValueError: no images; a CSV file with invalid columns or lines: each is named with its number; or `label_from`
            is no column, or would replace another column `label`.
    """
    path = Path(place).expanduser()
    path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    if not path.exists():
        raise FileNotFoundError(f"images: {printable(path)} does not exist; give a folder of images or a CSV file")
    _require_utf8(path)
    if path.is_dir():
        if types:
            raise ValueError(f"types: need a CSV file, got the folder {path}, whose only column is label")
        if label_from not in (None, *_FOLDERS):
            raise ValueError(f"label_from: need parent or top for the folder {path}, got {label_from!r}")
        return _list_folder(path.resolve(), label_from, kept or {})
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise ValueError(f"images: need a folder or a .csv file, got {path}; give the folder that contains it")
    return _list_csv(path, types or {}, label_from, kept or {})


def list_queries(place: str | os.PathLike[str]) -> SourceListing:
    """List the images of a folder or CSV file that are to be searched for; of a CSV file only the column `path` counts.

    Raises:
        FileNotFoundError: the folder or file does not exist.
        ValueError: no images, or a CSV file without the column `path` or with invalid lines.
    """
    path = Path(place).expanduser()
    path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    if not path.exists():
        raise FileNotFoundError(f"queries: {printable(path)} does not exist; give a folder of images or a CSV file")
    if path.is_dir():
        found = find_images(path)
        listing = SourceListing(
            str(path),
            path,
            found.names,
            tuple({} for _ in found.names),
            {},
            left_out=found.left_out,
            closed=found.closed,
        )
    elif path.suffix.lower() == ".csv" and path.is_file():
        listing = _listed_queries(path)
    else:
        raise ValueError(f"queries: need a folder or a .csv file, got {path}; give one image as IMAGE")
    if not len(listing):
        left = listing.notice()
        raise ValueError(f"queries: {path} names no images" + ("" if left is None else f" ({left})"))
    return listing


def _listed_queries(file: Path) -> SourceListing:
    """The images that a CSV file names."""
    table = read_csv(file)
    if "path" not in table.columns:
        raise ValueError(f"{file}: need a first line with the column path, got {shown(','.join(table.columns))}")
    listing = FileListing()
    folder = folder_of_paths(file, [row.cells["path"] for row in table.rows], listing)
    paths, faults = _paths_of(table, folder, folder, listing)
    table.require_sound(faults)
    return SourceListing(
        str(file), folder, paths, tuple({} for _ in paths), {}, lines=tuple(row.line for row in table.rows)
    )


def _require_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"images: {printable(path)}: {_NOT_UTF8}") from error


def _list_folder(folder: Path, label_from: str | None, kept: Mapping[str, str]) -> SourceListing:
    found = find_images(folder)
    names = tuple(name for name in found.names if _is_utf8(name))
    source = f"{folder}/" if folder.suffix.lower() == ".csv" else str(folder)
    label_from = label_from or kept.get(source)
    left = left_out_line(found.left_out, found.closed)
    if not names:
        raise ValueError(
            f"images: {folder} and its subfolders contain none"
            + (f" (left out {left})" if left else "")
            + "; name a folder that has image files"
        )
    return SourceListing(
        source=source,
        folder=folder,
        paths=names,
        cells=tuple({"label": _folder_label(name, label_from or "top")} for name in names),
        columns={"label": "text"},
        bad=tuple(BadImage(printable(folder / name), _NOT_UTF8) for name in found.names if not _is_utf8(name)),
        left_out=found.left_out,
        closed=found.closed,
        label_from=label_from,
    )


def _folder_label(path: str, label_from: str) -> str:
    """The name of the first folder of a relative path ("top") or of the last one; empty without folders."""
    folders = path.split("/")[:-1]
    return nfc(folders[0 if label_from == "top" else -1]) if folders else ""


def _with_labels(
    cells: tuple[dict[str, str], ...], paths: tuple[str, ...], file: Path, columns: list[str], label_from: str
) -> tuple[dict[str, str], ...]:
    """The cells of a CSV file with the column `label` from another column, or from folders of the paths."""
    if label_from not in columns and label_from not in _FOLDERS:
        raise ValueError(
            f"label_from: need parent, top or a column of {file}; it has no column {label_from!r}; "
            f"{did_you_mean(label_from, columns)}"
        )
    if label_from == "label":
        return cells
    if "label" in columns:
        raise ValueError(f"label_from: {file} has a column label, which {label_from} would replace; rename it")
    if label_from in columns:
        return tuple({**entry, "label": entry[label_from]} for entry in cells)
    outside = next((path for path in paths if path.startswith("/")), None)
    if label_from == "top" and outside is not None:
        raise ValueError(f"label_from: {outside} is not below {file.parent}, so it has no top folder; take parent")
    return tuple({**entry, "label": _folder_label(path, label_from)} for entry, path in zip(cells, paths, strict=True))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_csv(
    file: Path, types: Mapping[str, ColumnType], label_from: str | None, kept: Mapping[str, str]
) -> SourceListing:
    table = read_csv(file)
    types = {nfc(name): kind for name, kind in types.items()}
    _check_columns(table, types)
    listing = FileListing()
    folder = folder_of_paths(file, [row.cells["path"] for row in table.rows], listing)
    target = file.resolve()
    if folder == target.parent and target.suffix.lower() == ".csv":
        file = target
    paths, faults = _paths_of(table, folder, file.parent, listing)
    table.require_sound(faults)
    if not table.rows:
        raise ValueError(f"{file}: need one line per image below the first, got none")
    given = [name for name in table.columns if name != "path"]
    others = [nfc(name) for name in given]
    cells = tuple({nfc(name): nfc(row.cells[name]) for name in given} for row in table.rows)
    label_from = label_from or kept.get(str(file))
    if label_from is not None:
        cells = _with_labels(cells, paths, file, others, nfc(label_from))
        others = [*others, *({"label"} - set(others))]
    columns: dict[str, ColumnType] = {}
    for name in others:
        kind = types.get(name) or ("text" if name == "label" else guessed_type([entry[name] for entry in cells]))
        if kind is not None:
            columns[name] = kind
    return SourceListing(
        source=str(file),
        folder=file.parent,
        paths=paths,
        cells=cells,
        columns=columns,
        named_types=frozenset(types),
        lines=tuple(row.line for row in table.rows),
        label_from=label_from,
    )


def _paths_of(
    table: CsvTable, folder: Path, base: Path, listing: FileListing
) -> tuple[tuple[str, ...], list[LineFault]]:
    """The path of each row below `base`, with its names on disk; and the rows without a path, or with one twice.

    Paths in the file begin in `folder`; those outside of `base` are absolute.
    """
    paths: list[str] = []
    faults: list[LineFault] = []
    seen: dict[str, int] = {}
    start, root = (os.path.join(place, "") for place in (folder, base))  # noqa: PTH118
    for row in table.rows:
        given = row.cells["path"]
        if not given:
            faults.append(LineFault(row.line, "path is empty"))
            continue
        place = joined(start, given)  # a Path for each of a hundred thousand lines takes seconds
        found = listing.look_up(place)
        file = os.path.normpath(place) if found is None else _without_dots(found.path)
        first = seen.setdefault(file if found is None else found.identity, row.line)
        if first != row.line:
            faults.append(LineFault(row.line, f"{given} is already in line {first}"))
        paths.append((file[len(root) :] if file.startswith(root) else file).replace(os.sep, "/"))
    return tuple(paths), faults


def _without_dots(path: str) -> str:
    """The path of a file without `..`, which may lead out of a linked folder: then its real path."""
    if "/." not in path and "//" not in path and os.sep == "/":  # nothing to do, which is told faster than done
        return path
    plain = os.path.normpath(path)
    return plain if ".." not in path or os.path.samefile(plain, path) else os.path.realpath(path)  # noqa: PTH121


def _check_columns(table: CsvTable, types: Mapping[str, ColumnType]) -> None:
    names, file = [nfc(name) for name in table.columns], table.file
    if "path" not in names:
        raise ValueError(f"{file}: need a first line with the column path, got {shown(','.join(names)) or 'nothing'}")
    taken = OWN_COLUMNS.keys() - {"path"}
    for name in names:
        own = f"need a name other than {', '.join(sorted(taken))}, got {shown(name)}" if name in taken else None
        same = (
            f"need distinct names, got {shown(name)} twice, in two forms of Unicode" if names.count(name) > 1 else None
        )
        fault = own or name_fault(name) or same
        if fault is not None:
            raise ValueError(f"{file}: columns: {fault}; rename it")
    for name in types:
        if name not in names or name == "path":
            raise ValueError(f"types: {file} has no column {name!r} to be typed; {did_you_mean(name, names)}")
