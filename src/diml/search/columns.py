"""The columns of an index and those of a source: cells are read by the index's own types, which may become wider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from diml.search.cells import WIDER, is_exact, is_value, looks_like
from diml.search.filters import ColumnType
from diml.search.sources import OWN_COLUMNS, SourceListing
from diml.search.store import EXACT, Store

_SHOWN: Final = 20


@dataclass(frozen=True)
class FittedColumns:
    """The columns that an index needs for a source.

    Args:
        columns: all columns of the index, name -> type.
        named_types: those whose types were named.
        notices: what was decided, one line each.
    """

    columns: Mapping[str, ColumnType]
    named_types: tuple[str, ...]
    notices: tuple[str, ...]


def columns_of_new_index(listing: SourceListing) -> FittedColumns:
    """The columns of an index that is created for a source.

    Raises:
        ValueError: cells are no values of a type that was named; each is named with its row.
    """
    for name in sorted(listing.named_types):
        _require_values(listing, name, listing.columns[name])
    notices = tuple(filter(None, (_kept_as_text(listing, name) for name in listing.columns)))
    return FittedColumns({**OWN_COLUMNS, **listing.columns}, tuple(sorted(listing.named_types)), notices)


def columns_of_index(store: Store, listing: SourceListing) -> FittedColumns:
    """The columns of an existing index, with those of a source added and made as wide as its cells need.

    Raises:
        ValueError: a cell has no value of its column's type, and the type cannot be wider; each is named with its row.
    """
    columns: dict[str, ColumnType] = dict(store.config.columns)
    named = set(store.config.named_types)
    notices: list[str] = []
    for name, kind in listing.columns.items():
        own = columns.get(name)
        if own is None:
            columns[name] = kind
            told: str | None = f"{name}: a new column, {kind}"
        elif name in listing.named_types:
            if kind != own and kind not in WIDER[own]:
                wider = ", ".join(WIDER[own]) or "no other type"
                raise ValueError(f"types: {name} is {own} in this index and can become {wider}, got {kind}")
            columns[name] = kind
            told = None if kind == own else f"{name}: {own} before, now {kind}, as named"
        else:
            columns[name], told = _wide_enough(store, listing, name, own, named=name in named)
        notices += filter(None, [told, _kept_as_text(listing, name) if own is None else None])
    named |= listing.named_types
    for name in sorted(named & listing.columns.keys()):
        _require_values(listing, name, columns[name])
    return FittedColumns(columns, tuple(sorted(named)), tuple(notices))


def _wide_enough(
    store: Store, listing: SourceListing, name: str, own: ColumnType, *, named: bool
) -> tuple[ColumnType, str | None]:
    """The narrowest type from the index's own on that is exact for all cells, and a line where it is another."""
    cells = [(row, entry[name]) for row, entry in enumerate(listing.cells) if entry[name]]
    fits = is_value if named else is_exact
    odd = next(((row, cell) for row, cell in cells if not fits(cell, own)), None)
    if odd is None:
        return own, None
    for kind in () if named else WIDER[own]:
        if all(is_exact(cell, kind) for _, cell in cells) and (kind == "text" or _exact_numbers(store, name)):
            return kind, f"{name}: {own} before, now {kind}, because of {odd[1]!r} in {listing.place(odd[0])}"
    _require_values(listing, name, own, exact=not named)
    raise AssertionError("a cell that does not fit was not found again")


def _exact_numbers(store: Store, name: str) -> bool:
    """Whether all whole numbers of a column are float64 numbers too."""
    for part in store.listing(columns=[name]):
        for entry in part.metadata:
            value = entry[name]
            if isinstance(value, int | float) and abs(value) > EXACT:
                return False
    return True


def _require_values(listing: SourceListing, name: str, kind: ColumnType, *, exact: bool = False) -> None:
    fits = is_exact if exact else is_value
    wrong = [
        f"{listing.place(row)}: {name} needs {kind}, got {entry[name]!r}"
        for row, entry in enumerate(listing.cells)
        if entry[name] and not fits(entry[name], kind)
    ]
    if wrong:
        more = [f"and {len(wrong) - _SHOWN:,} more"] if len(wrong) > _SHOWN else []
        lines = "\n  ".join([*wrong[:_SHOWN], *more])
        raise ValueError(f"{len(wrong):,} cells have another type than their column; nothing was changed:\n  {lines}")


def _kept_as_text(listing: SourceListing, name: str) -> str | None:
    """A line about a column that could be read as another type than text, but not exactly."""
    if listing.columns[name] != "text" or name == "label" or name in listing.named_types:
        return None
    found = looks_like([entry[name] for entry in listing.cells])
    if found is None:
        return None
    kind, cell = found
    return f"{name}: text, as {cell!r} would come back as another text; --types {name}={kind} reads it as {kind}"
