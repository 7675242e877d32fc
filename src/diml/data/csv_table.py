"""CSV files read strictly: every row has a cell for each column, or the file is refused with the number of the line.

One reader for data sets, indexes, boxes and solutions. A quote that is not closed makes the rows below it one cell: a
reader that accepts such a cell loses images without a word.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from diml.data.listing import FileListing, is_image_name

_SHOWN: Final = 20
_NEED: Final = "need a CSV text file in UTF-8"
_REMEDY: Final = "close the quote, or write a quote inside of a quoted cell twice"


class CsvRow(NamedTuple):
    """A row: the number of the line where it begins, from 1, and column -> text without spaces around it."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class LineFault:
    """What is wrong with a line of a file."""

    line: int
    reason: str


@dataclass(frozen=True, repr=False)
class CsvTable:
    """The rows of a CSV file.

    Args:
        file: that was read.
        columns: names in the first line, distinct.
        rows: the well-formed ones, in order.
        faults: the malformed ones; nothing may be done with the rows while there are any.
        complete: whether the rows after the last fault were read too.
    """

    file: Path
    columns: tuple[str, ...]
    rows: tuple[CsvRow, ...]
    faults: tuple[LineFault, ...]
    complete: bool = True

    def __repr__(self) -> str:
        return f"CsvTable({str(self.file)!r}, rows={len(self.rows)}, columns={list(self.columns)})"

    def require_sound(self, faults: Sequence[LineFault] = ()) -> None:
        """Raise ValueError with every malformed row, and with further faults of the content, by line."""
        found = sorted((*self.faults, *faults), key=lambda fault: fault.line)
        if not found:
            return
        lines = [f"line {fault.line}: {fault.reason}" for fault in found]
        shown = lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])
        total = len({row.line for row in self.rows} | {fault.line for fault in found})
        count = f"{len(found)} of {total}" if self.complete else f"{len(found)} or more"
        raise ValueError(f"{self.file}: {count} lines are invalid; nothing was changed:\n  " + "\n  ".join(shown))


def read_csv(file: str | os.PathLike[str], path_column: str = "path") -> CsvTable:
    """Read a CSV file with a first line of column names, separated by commas, in UTF-8.

    Spaces around cells are cut off, and empty lines skipped. A row is malformed where it has another number of cells
    than the first line, where a quote does not close, where text follows a closing quote, where a cell has a line end
    and no other row has any, and where the lines of a cell read like rows of their own.

    Args:
        file: to read.
        path_column: the column with the paths of images, by which a row inside of a cell is recognised.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text file in UTF-8, or its columns are not distinct.
    """
    place = Path(file)
    if place.exists() and not place.is_file():
        raise ValueError(f"{place}: {_NEED}, got {'a folder' if place.is_dir() else 'no regular file'}")
    faults: list[LineFault] = []
    lines = _numbered_rows(place, faults)
    names = tuple(name.strip() for name in next(lines, (1, []))[1])
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{place}, line 1: need distinct columns, got {doubled[0]!r} more than once; rename one")
    rows: list[CsvRow] = []
    broken: dict[int, list[str]] = {}
    for line, cells in lines:
        if len(cells) != len(names):
            faults.append(LineFault(line, f"has {len(cells)} cells, and the first line has {len(names)} columns"))
            continue
        whole = "".join(cells)  # one text to look in is faster than many
        if "\n" in whole or "\r" in whole:
            broken[line] = cells
        rows.append(CsvRow(line, dict(zip(names, map(str.strip, cells), strict=True))))
    complete = not any("quote" in fault.reason for fault in faults)  # the reader stops at such a row
    for line, cells in broken.items():
        reason = _swallowed(cells, names, path_column, alone=len(broken) == 1)
        if reason is not None:
            faults.append(LineFault(line, reason))
    bad = {fault.line for fault in faults}
    return CsvTable(place, names, tuple(row for row in rows if row.line not in bad), tuple(faults), complete)


def folder_of_paths(file: Path, paths: Sequence[str], listing: FileListing) -> Path:
    """The folder that the relative paths of a CSV file begin in: its own.

    Of a file that is a link (a data set under DVC, a cache of a hub) that is the folder of the link; that of its target
    only where no image is beside the link and one is there.
    """
    if not file.is_symlink():
        return file.parent
    relative = [path for path in paths if not os.path.isabs(path)]  # noqa: PTH117
    for folder in (file.parent, file.resolve().parent):
        if any(listing.find(folder / path) is not None for path in relative):
            return folder
    return file.parent


def _numbered_rows(file: Path, faults: list[LineFault]) -> Iterator[tuple[int, list[str]]]:
    """The line where each row begins, and its cells; an error of the reader is appended to `faults` and ends the rows.

    Raises:
        ValueError: the file is no text in UTF-8, or the first line is at fault.
    """
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        line = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}: {_NEED} ({_decoding_error(file, error)})") from error
            except csv.Error as error:
                reason = _reader_error(str(error))
                if line == 1:
                    raise ValueError(f"{file}, line 1: {_NEED} ({reason})") from error
                faults.append(LineFault(line, reason))
                return
            if "\0" in "".join(cells):
                raise ValueError(f"{file}, line {line}: {_NEED}, got a zero byte; save it in UTF-8")
            if cells:
                yield line, cells
            line = reader.line_num + 1


def _decoding_error(file: Path, error: UnicodeDecodeError) -> str:
    """Where the file, not only the part of it that the error is about, stops to be UTF-8."""
    content = file.read_bytes()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as whole:
        error = whole
    line = content[: error.start].count(b"\n") + 1
    return f"line {line}: {error.reason}, byte {content[error.start]:#04x}"


def _reader_error(message: str) -> str:
    if "unexpected end" in message or "field larger" in message:
        return f"has a quote that is not closed; {_REMEDY}"
    if "expected after" in message:
        return f"has text after a closing quote; {_REMEDY}"
    return message


def _swallowed(cells: Sequence[str], names: Sequence[str], path_column: str, *, alone: bool) -> str | None:
    """Why a row with line ends in its cells is malformed, or None."""
    for name, cell in zip(names, cells, strict=True):
        pieces = cell.splitlines()
        if len(pieces) < 2:
            continue
        if alone or _has_rows(pieces, names, name, path_column):
            why = "no other row has any" if alone else "its lines read like rows"
            return f"the cell of {name!r} has line ends, and {why}: a quote is probably not closed; {_REMEDY}"
    return None


def _has_rows(pieces: Sequence[str], names: Sequence[str], name: str, path_column: str) -> bool:
    """Whether the lines of a cell have an image path where rows of the table would have it, or as many cells."""
    column = names.index(name)
    if path_column not in names:
        return all(piece.count(",") == len(names) - 1 for piece in pieces[1:-1]) and len(pieces) > 2
    place = names.index(path_column)
    # The first line of the cell is the end of a row, from its column on; the others begin with a first cell.
    rows = [piece.split(",") for piece in pieces]
    found = [row[place] for row in rows[1:] if len(row) > place]
    if place > column and len(rows[0]) > place - column:
        found.append(rows[0][place - column])
    return any(is_image_name(cell.strip(' "')) for cell in found)
