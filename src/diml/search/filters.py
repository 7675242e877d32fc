"""Conditions on metadata, `label = 'x' and price < 3`: one small language, which each data base is told in its own.

A image without a value in a column fits no comparison with that column, `!=` included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

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
_FITS: Final[Mapping[str, tuple[type, ...]]] = {
    "text": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
}


@dataclass(frozen=True)
class Comparison:
    """`column operator value`."""

    column: str
    operator: Operator
    value: Constant


@dataclass(frozen=True)
class Membership:
    """`column in (values)`, or `not in` them."""

    column: str
    values: tuple[Constant, ...]
    negated: bool = False


@dataclass(frozen=True)
class Both:
    """`left and right`."""

    left: Where
    right: Where


@dataclass(frozen=True)
class Either:
    """`left or right`."""

    left: Where
    right: Where


Where = Comparison | Membership | Both | Either


def parse_where(text: str, columns: Mapping[str, str]) -> Where:
    """Read a condition.

    `=`, `!=`, `<`, `<=`, `>`, `>=`, `in (...)`, `not in (...)`, `and`, `or`, `not`, parentheses; texts in single quotes
    ('' stands for one inside), numbers, true, false; keywords in any case.

    Args:
        text: the condition.
        columns: name -> type of the columns that there are.

    Returns:
        The condition as a tree without `not`, which has been carried down to the comparisons.

    Raises:
        ValueError: it cannot be read, or compares a column with a value of another type; the message shows where.

    Example:
        >>> parse_where("label = 'milk'", {"label": "text"})
        Comparison(column='label', operator='=', value='milk')
    """
    return _Parser(text, columns).whole()


class _Parser:
    """Recursive descent over the tokens of a condition."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self.text, self.columns, self.place, self.depth = text, columns, 0, 0
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if found is None or found.lastgroup is None:
                raise self._error("a column, a value in single quotes, a number or an operator", at)
            self.tokens.append((found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
            at = found.end()

    def whole(self) -> Where:
        found = self._either(False)
        if self.place < len(self.tokens):
            raise self._error("'and', 'or' or the end")
        return found

    def _either(self, negated: bool) -> Where:
        found = self._both(negated)
        while self._take_word("or"):
            other = self._both(negated)
            found = Both(found, other) if negated else Either(found, other)
        return found

    def _both(self, negated: bool) -> Where:
        found = self._single(negated)
        while self._take_word("and"):
            other = self._single(negated)
            found = Either(found, other) if negated else Both(found, other)
        return found

    def _single(self, negated: bool) -> Where:
        self.depth += 1
        if self.depth > 100:
            raise ValueError("where: nested more than 100 deep; write it flatter")
        try:
            if self._take_word("not"):
                return self._single(not negated)
            if self._take_sign("("):
                found = self._either(negated)
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
            raise ValueError(f"where: no column {name!r}; there are {', '.join(sorted(self.columns)) or 'none'}")
        if self._take_word("not"):
            if not self._take_word("in"):
                raise self._error("'in' after 'not'")
            return self._members(name, not negated)
        if self._take_word("in"):
            return self._members(name, negated)
        kind, sign, at = self._next("an operator such as =")
        if sign not in _SPELLINGS:
            raise self._error("an operator such as =", at)
        operator = _SPELLINGS[sign]
        if self.columns[name] == "boolean" and operator not in ("=", "!="):
            raise self._error(f"= or != for {name}, which is true or false", at)
        return Comparison(name, _OPPOSITE[operator] if negated else operator, self._value(name))

    def _members(self, column: str, negated: bool) -> Membership:
        self._need("(")
        values = [self._value(column)]
        while self._take_sign(","):
            values.append(self._value(column))
        self._need(")")
        return Membership(column, tuple(values), negated)

    def _value(self, column: str) -> Constant:
        kind, word, at = self._next("a value")
        value: Constant
        if kind == "text":
            value = word[1:-1].replace("''", "'")
        elif kind == "number":
            value = int(word) if re.fullmatch(r"[-+]?\d+", word) else float(word)
        elif kind == "word" and word.lower() in ("true", "false"):
            value = word.lower() == "true"
        else:
            raise self._error("a value: 'text' in single quotes, a number, true or false", at)
        wanted = self.columns[column]
        if not isinstance(value, _FITS[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
            raise self._error(f"a value of the type of {column}, {wanted}", at)
        return value

    def _take_word(self, word: str) -> bool:
        return self._take("word", word)

    def _take_sign(self, sign: str) -> bool:
        return self._take("sign", sign)

    def _take(self, kind: str, wanted: str) -> bool:
        if self.place < len(self.tokens):
            found, word, _ = self.tokens[self.place]
            if found == kind and word.lower() == wanted:
                self.place += 1
                return True
        return False

    def _need(self, sign: str) -> None:
        if not self._take_sign(sign):
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
        got = f"{rest!r}" if rest else "the end"
        return ValueError(f"where: need {wanted}, got {got} in {self.text!r}; for instance: label = 'milk'")


def to_sql(where: Where) -> str:
    """The condition in SQL, names in backquotes, for data bases that speak it."""
    match where:
        case Comparison(column, operator, value):
            return f"{_sql_column(column, (value,))} {operator} {sql_value(value)}"
        case Membership(column, values, negated):
            listed = ", ".join(sql_value(value) for value in values)
            return f"{_sql_column(column, values)} {'NOT IN' if negated else 'IN'} ({listed})"
        case Both(left, right):
            return f"({to_sql(left)} AND {to_sql(right)})"
        case Either(left, right):
            return f"({to_sql(left)} OR {to_sql(right)})"


def _sql_column(column: str, values: tuple[Constant, ...]) -> str:
    """The column, as fractions where it is compared with one: LanceDB does not compare integers with those."""
    fractions = any(isinstance(value, float) for value in values)
    return f"CAST(`{column}` AS DOUBLE)" if fractions else f"`{column}`"


def sql_value(value: Constant) -> str:
    """A constant in SQL."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)
