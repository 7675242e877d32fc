"""What the values of an index's columns are, so that a page can offer filters: values with counts, or ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from diml.search.filters import ColumnType
from diml.search.store import ListedRows, Value

#: A text column with more different values is searched, not chosen from.
MOST_VALUES: Final = 200


@dataclass(frozen=True, kw_only=True)
class Facet:
    """The values of one column.

    Args:
        name: of the column.
        type: of the column.
        kind: "values": few different ones, each with its count; "range": numbers; "text": many different texts.
        values: of kind "values": (value, number of images), most frequent first.
        low, high: of kind "range": the least and the largest number; None where there is none.
        missing: images without a value.
    """

    name: str
    type: ColumnType
    kind: Literal["values", "range", "text"]
    values: tuple[tuple[str | bool, int], ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    missing: int = 0


def facets_of(parts: Iterable[ListedRows], columns: Mapping[str, ColumnType]) -> tuple[Facet, ...]:
    """Count the values of columns in one pass, with bounded memory.

    Args:
        parts: all rows, with these columns.
        columns: name -> type, in the order of the result.
    """
    found = [_Column(name, kind) for name, kind in columns.items()]
    for part in parts:
        for column in found:
            column.add([metadata.get(column.name) for metadata in part.metadata])
    return tuple(column.facet() for column in found)


class _Column:
    """The values of a column that were seen so far."""

    def __init__(self, name: str, kind: ColumnType) -> None:
        self.name, self._type = name, kind
        self._counts: Counter[Value] = Counter()
        self._range: list[int | float] = []
        self._missing, self._many = 0, False

    def add(self, values: list[Value]) -> None:
        """Count the values of some images."""
        if self._type in ("integer", "number"):
            numbers = [value for value in values if isinstance(value, int | float)]
            self._missing += len(values) - len(numbers)
            ends = [*self._range, *numbers]
            self._range = [min(ends), max(ends)] if ends else []
        elif self._many:
            self._missing += values.count(None)
        else:
            self._counts.update(values)
            self._missing += self._counts.pop(None, 0)
            if len(self._counts) > MOST_VALUES:
                self._many = True
                self._counts.clear()

    def facet(self) -> Facet:
        """What was counted."""
        if self._type in ("integer", "number"):
            low, high = self._range or (None, None)
            return Facet(name=self.name, type=self._type, kind="range", low=low, high=high, missing=self._missing)
        counts = [(value, count) for value, count in self._counts.items() if isinstance(value, str | bool)]
        values = tuple(sorted(counts, key=lambda entry: (-entry[1], str(entry[0]))))
        kind: Literal["values", "text"] = "text" if self._many else "values"
        return Facet(name=self.name, type=self._type, kind=kind, values=values, missing=self._missing)
