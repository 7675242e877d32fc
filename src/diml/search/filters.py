"""Conditions on metadata, `label = 'x' and price < 3`: one small language, translated for each database.

An image without a value in a column satisfies no comparison with that column, `!=` included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from diml.data.listing import nfc
from diml.spelling import shown

ColumnType = Literal["text", "integer", "number", "boolean"]
Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Constant = str | int | float | bool

_OPPOSITE: Final[Mapping[Operator, Operator]] = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_SPELLINGS: Final[Mapping[str, Operator]] = {
    "=": "=",
    "==": "=",
    "!=": "!=",
    "<>": "!=",
    "<": "<",
    "<=": "<=",
    ">": ">",
    ">=": ">=",
}
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"""
    r"""|(?P<sign><=|>=|<>|!=|==|[=<>(),])|(?P<word>[A-Za-z_]\w*))"""
)
_KEYWORDS: Final = frozenset({"and", "or", "not", "in", "true", "false"})
_COMPARABLE: Final[Mapping[str, tuple[type, ...]]] = {
    "text": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
}
_DEEPEST: Final = 100
#: Whole numbers of an index and of conditions lie between this number and its negative.
LARGEST_INTEGER: Final = 2**63 - 1
#: Columns whose texts are names of files, and are compared as they are.
_FILES: Final = frozenset({"id", "source", "path", "content"})


@dataclass(frozen=True)
class ColumnComparison:
    """`column operator value`."""

    column: str
    operator: Operator
    value: Constant


@dataclass(frozen=True)
class ColumnMembership:
    """`column in (values)`, or `column not in (values)`."""

    column: str
    values: tuple[Constant, ...]
    negated: bool = False


@dataclass(frozen=True)
class And:
    """`left and right`."""

    left: Where
    right: Where


@dataclass(frozen=True)
class Or:
    """`left or right`."""

    left: Where
    right: Where


Where = ColumnComparison | ColumnMembership | And | Or


def parse_where(text: str, columns: Mapping[str, ColumnType]) -> Where:
    """Parse a condition.

    `=`, `!=`, `<`, `<=`, `>`, `>=`, `in (...)`, `not in (...)`, `and`, `or`, `not`, parentheses; texts in single quotes
    ('' stands for a quote inside), numbers, true, false; keywords in any case.

    Args:
        text: the condition.
        columns: name -> type of the existing columns.

    Returns:
        The condition as a tree without `not`, which is moved down to the comparisons (De Morgan).

    Raises:
        ValueError: a syntax error, or a column compared with a value of another type; the message shows where.

    Example:
        >>> parse_where("label = 'milk'", {"label": "text"})
        ColumnComparison(column='label', operator='=', value='milk')
    """
    return _WhereParser(text, columns).parse()


class _WhereParser:
    """Recursive descent over the tokens of a condition."""

    def __init__(self, text: str, columns: Mapping[str, ColumnType]) -> None:
        self.text, self.columns, self.place, self.depth = text, columns, 0, 0
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise self._error("a column, a value in single quotes, a number or an operator", at)
            self.tokens.append((found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
            at = found.end()

    def parse(self) -> Where:
        found = self._disjunction(False)
        if self.place < len(self.tokens):
            raise self._error("'and', 'or' or the end")
        return found

    def _disjunction(self, negated: bool) -> Where:
        return self._joined("or", And if negated else Or, lambda: self._conjunction(negated))

    def _conjunction(self, negated: bool) -> Where:
        return self._joined("and", Or if negated else And, lambda: self._term(negated))

    def _joined(self, keyword: str, join: type[And | Or], operand: Callable[[], Where]) -> Where:
        operands = [operand()]
        while self._take("word", keyword):
            operands.append(operand())
        while len(operands) > 1:  # halved in turn: 3,000 comparisons are 12 deep, which no translation minds
            pairs = zip(operands[::2], operands[1::2], strict=False)
            operands = [*(join(left, right) for left, right in pairs), *operands[len(operands) & ~1 :]]
        return operands[0]

    def _term(self, negated: bool) -> Where:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError(f"where: nested more than {_DEEPEST} deep; simplify the condition")
        try:
            if self._take("word", "not"):
                return self._term(not negated)
            if self._take("sign", "("):
                found = self._disjunction(negated)
                self._need(")")
                return found
            return self._comparison(negated)
        finally:
            self.depth -= 1

    def _comparison(self, negated: bool) -> Where:
        kind, name, at = self._next("a column")
        if kind != "word" or name.lower() in _KEYWORDS:
            raise self._error("a column", at)
        if name not in self.columns:
            raise ValueError(f"where: no column {shown(name)}; there are {', '.join(sorted(self.columns)) or 'none'}")
        if self._take("word", "not"):
            if not self._take("word", "in"):
                raise self._error("'in' after 'not'")
            return self._membership(name, not negated)
        if self._take("word", "in"):
            return self._membership(name, negated)
        kind, sign, at = self._next("an operator such as =")
        if sign not in _SPELLINGS:
            raise self._error("an operator such as =", at)
        operator = _SPELLINGS[sign]
        if self.columns[name] == "boolean" and operator not in ("=", "!="):
            raise self._error(f"= or != for {name}, which is true or false", at)
        return ColumnComparison(name, _OPPOSITE[operator] if negated else operator, self._value(name))

    def _membership(self, column: str, negated: bool) -> ColumnMembership:
        self._need("(")
        values = [self._value(column)]
        while self._take("sign", ","):
            values.append(self._value(column))
        self._need(")")
        return ColumnMembership(column, tuple(values), negated)

    def _value(self, column: str) -> Constant:
        kind, word, at = self._next("a value")
        value: Constant
        if kind == "text":
            value = word[1:-1].replace("''", "'")
            value = value if column in _FILES else nfc(value)
        elif kind == "number":
            value = self._number(word, self.columns[column], at)
        elif kind == "word" and word.lower() in ("true", "false"):
            value = word.lower() == "true"
        else:
            raise self._error("a value: 'text' in single quotes, a number, true or false", at)
        wanted = self.columns[column]
        if not isinstance(value, _COMPARABLE[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
            raise self._error(f"a value of the type of {column}, {wanted}", at)
        return value

    def _number(self, word: str, column: ColumnType, at: int) -> int | float:
        """A number that every database can compare with this type of column."""
        if re.fullmatch(r"[-+]?\d{1,19}", word) and abs(int(word)) <= LARGEST_INTEGER:
            return int(word)
        value = float(word)
        if column == "integer" and re.fullmatch(r"[-+]?\d+", word):
            raise self._error(f"a whole number of 64 bits, from -{LARGEST_INTEGER} to {LARGEST_INTEGER}", at)
        if value in (float("inf"), float("-inf")):
            raise self._error("a number of at most 1.8e308", at)
        return value

    def _take(self, kind: str, wanted: str) -> bool:
        if self.place < len(self.tokens):
            found, word, _ = self.tokens[self.place]
            if found == kind and word.lower() == wanted:
                self.place += 1
                return True
        return False

    def _need(self, sign: str) -> None:
        if not self._take("sign", sign):
            raise self._error(f"{sign!r}")

    def _next(self, wanted: str) -> tuple[str, str, int]:
        if self.place == len(self.tokens):
            raise self._error(wanted)
        self.place += 1
        return self.tokens[self.place - 1]

    def _error(self, wanted: str, at: int | None = None) -> ValueError:
        if at is None:
            at = self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.text)
        rest = self.text[at:].strip()
        got = shown(rest) if rest else "the end"
        return ValueError(f"where: need {wanted}, got {got} in {shown(self.text)}; for example: label = 'milk'")


def to_sql(where: Where) -> str:
    """Translate a condition to SQL, with names in backquotes."""
    match where:
        case ColumnComparison(column, operator, value):
            return f"{_sql_column(column, (value,))} {operator} {sql_value(value)}"
        case ColumnMembership(column, values, negated):
            listed = ", ".join(sql_value(value) for value in values)
            return f"{_sql_column(column, values)} {'NOT IN' if negated else 'IN'} ({listed})"
        case And(left, right):
            return f"({to_sql(left)} AND {to_sql(right)})"
        case Or(left, right):
            return f"({to_sql(left)} OR {to_sql(right)})"


def _sql_column(column: str, values: tuple[Constant, ...]) -> str:
    """The column, cast to DOUBLE next to a fraction: LanceDB does not compare integers with fractions."""
    fractions = any(isinstance(value, float) for value in values)
    return f"CAST(`{column}` AS DOUBLE)" if fractions else f"`{column}`"


def sql_value(value: Constant) -> str:
    """Return a constant in SQL."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)
