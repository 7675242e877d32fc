"""Conditions on metadata as expressions of Milvus, with the meaning that `to_sql` gives them in LanceDB.

A column is two fields, its value and whether there is one. `like` is not translated: versions of Milvus match different
patterns (2.3 only those that begin with their text), so it becomes a range of texts here, or the store looks for the
texts that match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from diml.search.filters import (
    And,
    ColumnComparison,
    ColumnMembership,
    ColumnMissing,
    ColumnPattern,
    Constant,
    Or,
    Where,
    Wildcard,
    pattern_pieces,
)
from diml.search.names import field_name

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def column_fields(columns: Sequence[str]) -> list[str]:
    """Return the names of the fields of columns, two of each: its value, and whether there is one."""
    return [field for name in columns for field in (f"value_{field_name(name)}", f"has_{field_name(name)}")]


def quoted(text: str) -> str:
    """Return a text as a constant of Milvus."""
    return f'"{text.translate(_ESCAPES)}"'


@dataclass(frozen=True)
class TextCondition:
    """A condition on a text column, and its opposite, neither of which holds where there is no value."""

    positive: Where
    negative: Where


def prefix_of(column: str, pattern: str) -> tuple[TextCondition, TextCondition | None]:
    """What a pattern of `like` comes to in comparisons: Milvus orders texts by their UTF-8, as code points are.

    Returns:
        The texts that begin as the pattern does; and the texts that match it, or None where that takes a search.
    """
    pieces = pattern_pieces(pattern)
    start = pieces[0] if pieces and isinstance(pieces[0], str) else ""
    after = _next_text(start)
    found = TextCondition(ColumnMissing(column, negated=True), ColumnMembership(column, ()))
    if start:
        found = TextCondition(ColumnComparison(column, ">=", start), ColumnComparison(column, "<", start))
        if after is not None:
            found = TextCondition(
                And(found.positive, ColumnComparison(column, "<", after)),
                Or(found.negative, ColumnComparison(column, ">=", after)),
            )
    rest = pieces[bool(start) :]
    if not rest:
        return found, TextCondition(ColumnComparison(column, "=", start), ColumnComparison(column, "!=", start))
    return found, found if all(piece is Wildcard.ANY for piece in rest) else None


def _next_text(start: str) -> str | None:
    """The first text after all those that begin with this one; None where there is none."""
    while start:
        code = ord(start[-1]) + 1
        if code <= 0x10FFFF:
            return start[:-1] + chr(0xE000 if code == 0xD800 else code)
        start = start[:-1]
    return None


def to_expression(where: Where) -> str:
    """Translate a parsed condition without `like` to an expression of Milvus, with the meaning of `to_sql`."""
    match where:
        case ColumnComparison(column, operator, value):
            return _with_value(column, f"{'==' if operator == '=' else operator} {_constant(value)}")
        case ColumnMembership(column, (), negated):
            return _with_value(column) if negated else _never(column)
        case ColumnMembership(column, values, negated):
            listed = ", ".join(_constant(value) for value in values)
            return _with_value(column, f"{'not in' if negated else 'in'} [{listed}]")
        case ColumnMissing(column, negated):
            return f"{column_fields([column])[1]} == {'true' if negated else 'false'}"
        case And(left, right):
            return f"({to_expression(left)} and {to_expression(right)})"
        case Or(left, right):
            return f"({to_expression(left)} or {to_expression(right)})"
        case ColumnPattern():
            raise AssertionError("a pattern is resolved before")


def _with_value(column: str, term: str = "") -> str:
    """The column has a value, and the term holds of it."""
    value, has = column_fields([column])
    return f"({has} == true and {value} {term})" if term else f"{has} == true"


def _never(column: str) -> str:
    _, has = column_fields([column])
    return f"({has} == true and {has} == false)"


def _constant(value: Constant) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
