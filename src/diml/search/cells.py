"""The type of a CSV column and the values of its cells.

A cell is a number only if the number prints back as the same text, and so does its whole column: `007`, `0021_1`, `1e6`
and codes of twenty digits are names, not amounts. Two different cells never become one value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from diml.search.filters import LARGEST_INTEGER, ColumnType
from diml.search.store import EXACT, IndexConfig, Rows, Value, printed

#: What `--types` calls the types -> the types of an index.
TYPE_NAMES: Final[Mapping[str, ColumnType]] = {
    "text": "text",
    "str": "text",
    "integer": "integer",
    "int": "integer",
    "number": "number",
    "float": "number",
    "boolean": "boolean",
    "bool": "boolean",
}
#: Types that a column may take instead of its own, narrowest first.
WIDER: Final[Mapping[ColumnType, tuple[ColumnType, ...]]] = {
    "integer": ("number", "text"),
    "number": ("text",),
    "boolean": (),
    "text": (),
}
_BOOLEANS: Final = {"true": True, "false": False}
_SAID: Final = {**_BOOLEANS, "yes": True, "no": False, "1": True, "0": False}
_WHOLE: Final = re.compile(r"[-+]?[0-9]{1,19}")
_DECIMAL: Final = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?")


def read_types(given: Sequence[str]) -> dict[str, ColumnType]:
    """Read `("price=float", "stock=int")`.

    Raises:
        ValueError: a word is not COLUMN=TYPE, a type is unknown, or it is that of the label, which is always text.
    """
    found: dict[str, ColumnType] = {}
    for word in given:
        column, sign, name = word.rpartition("=")
        if not sign or name.strip().lower() not in TYPE_NAMES:
            raise ValueError(f"types: need COLUMN=TYPE with one of {', '.join(TYPE_NAMES)}, got {word!r}")
        kind = TYPE_NAMES[name.strip().lower()]
        if column.strip() == "label" and kind != "text":
            raise ValueError(f"types: label is always text, got {word!r}")
        found[column.strip()] = kind
    return found


def guessed_type(cells: Sequence[str]) -> ColumnType | None:
    """The narrowest type of which every cell that is not empty is an exact value; None where all are empty."""
    filled = {cell for cell in cells if cell}
    if not filled:
        return None
    if all(cell in _BOOLEANS for cell in filled):
        return "boolean"
    if all(is_exact(cell, "integer") for cell in filled):
        return "integer"
    if all(is_exact(cell, "number") for cell in filled) and len({float(cell) for cell in filled}) == len(filled):
        return "number"
    return "text"


def looks_like(cells: Sequence[str]) -> tuple[ColumnType, str] | None:
    """For a column that became text: the type that all its cells can be read as, and the first that is not exact."""
    filled = [cell for cell in cells if cell]
    kinds: tuple[ColumnType, ...] = ("boolean", "integer", "number")
    for kind in kinds:
        if filled and all(is_value(cell, kind) for cell in filled):
            return kind, next((cell for cell in filled if not is_exact(cell, kind)), filled[0])
    return None


def is_exact(cell: str, kind: ColumnType) -> bool:
    """Whether a cell is the text that a value of this type prints as."""
    if kind == "text":
        return True
    if kind == "boolean":
        return cell in _BOOLEANS
    if _WHOLE.fullmatch(cell) and str(int(cell)) == cell:
        return _fits(int(cell)) if kind == "integer" else abs(int(cell)) <= EXACT
    return kind == "number" and _DECIMAL.fullmatch(cell) is not None and repr(float(cell)) == cell


def is_value(cell: str, kind: ColumnType) -> bool:
    """Whether a cell can be read as a value of a type that the user has named."""
    if kind == "text":
        return True
    if kind == "boolean":
        return cell.lower() in _SAID
    if kind == "integer":
        return _WHOLE.fullmatch(cell) is not None and _fits(int(cell))
    return _DECIMAL.fullmatch(cell) is not None and abs(float(cell)) != float("inf")


def cell_value(cell: str, kind: ColumnType) -> Value:
    """The value of a cell of which `is_value` holds; None where it is empty."""
    if not cell:
        return None
    if kind == "text":
        return cell
    if kind == "boolean":
        return _SAID[cell.lower()]
    return int(cell) if kind == "integer" else float(cell)


def widened_value(value: Value, kind: ColumnType) -> Value:
    """A stored value in a wider type."""
    if value is None or (kind == "number" and not isinstance(value, str)):
        return None if value is None else float(value)
    return printed(value) if kind == "text" else value


def widened_rows(rows: Rows, config: IndexConfig) -> Rows:
    """Stored rows with their metadata in the types of an index whose columns have become wider."""
    entries = tuple(
        {name: widened_value(value, config.columns[name]) for name, value in entry.items()} for entry in rows.metadata
    )
    return replace(rows, metadata=entries)


def _fits(number: int) -> bool:
    return abs(number) <= LARGEST_INTEGER
