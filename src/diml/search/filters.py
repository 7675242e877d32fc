"""Conditions on metadata, `label = 'x' and price < 3`: one small language, translated for each database.

Its grammar and meaning stand in docs/search.md, "Conditions". An image without a value in a column satisfies no
comparison with that column, `!=` and `not like` included; `is null` finds it.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from diml.data.listing import nfc
from diml.search.names import field_name
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
    r"""\s*(?:(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")+")"""
    r"""|(?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<sign><=|>=|<>|!=|==|[=<>(),])|(?P<word>[^\W\d][\w\u0300-\u036f]*))"""
)
_WORD: Final = re.compile(r"[^\W\d]\w*")
#: Words that stand for a column only in double quotes.
KEYWORDS: Final = frozenset({"and", "or", "not", "in", "like", "ilike", "between", "is", "null", "true", "false"})
_COMPARABLE: Final[Mapping[str, tuple[type, ...]]] = {
    "text": (str,),
    "integer": (int, Decimal),
    "number": (float,),
    "boolean": (bool,),
}
_DEEPEST: Final = 100
#: Whole numbers of an index and of conditions lie between this number and its negative.
LARGEST_INTEGER: Final = 2**63 - 1
#: Columns whose texts are names of files, and are compared as they are.
_FILES: Final = frozenset({"id", "source", "path", "content"})


@dataclass(frozen=True)
class ColumnComparison:
    """`column operator value`; the value of an integer column is an int, that of a number column a float."""

    column: str
    operator: Operator
    value: Constant


@dataclass(frozen=True)
class ColumnMembership:
    """`column in (values)`, or `column not in (values)`; without values nothing, or whatever has a value."""

    column: str
    values: tuple[Constant, ...]
    negated: bool = False


@dataclass(frozen=True)
class ColumnPattern:
    """`column like pattern`, or `column not like pattern`; the pattern as written, see `like_regex`.

    With `any_case`, which is `ilike`, pattern and text are compared in lower case.
    """

    column: str
    pattern: str
    negated: bool = False
    any_case: bool = False


@dataclass(frozen=True)
class ColumnMissing:
    """`column is null`: the image has no value; or `column is not null`."""

    column: str
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


Where = ColumnComparison | ColumnMembership | ColumnPattern | ColumnMissing | And | Or


def parse_where(text: str, columns: Mapping[str, ColumnType]) -> Where:
    """Parse a condition.

    `=`, `!=`, `<`, `<=`, `>`, `>=`, `in (...)`, `like`, `ilike`, `between a and b`, `is null`, a boolean column by
    itself, `and`, `or`, `not`, parentheses; texts in single quotes ('' stands for a quote inside), numbers, true,
    false; names of columns as they are or in double quotes ("" stands for a quote inside); keywords in any case.

    Args:
        text: the condition.
        columns: name -> type of the existing columns.

    Returns:
        The condition as a tree without `not`, which is moved down to the comparisons (De Morgan). Integer columns are
        compared with whole numbers of 64 bits only: `stock < 2.5` is read as `stock <= 2`.

    Raises:
        ValueError: a syntax error, or a column compared with a value of another type; the message shows where.

    Example:
        >>> parse_where("label = 'milk'", {"label": "text"})
        ColumnComparison(column='label', operator='=', value='milk')
        >>> parse_where('"unit price" is null', {"unit price": "number"})
        ColumnMissing(column='unit price', negated=False)
    """
    return _WhereParser(text, columns).parse()


def quoted_column(name: str) -> str:
    """A column's name as it is written in a condition: in double quotes where it is not a plain word."""
    plain = _WORD.fullmatch(name) is not None and name.lower() not in KEYWORDS
    return name if plain else '"' + name.replace('"', '""') + '"'


class Wildcard(enum.Enum):
    """What in a pattern of `like` stands for other characters than itself."""

    ANY = "%"
    ONE = "_"


def pattern_pieces(pattern: str) -> list[str | Wildcard]:
    r"""A pattern of `like` in pieces: texts that stand for themselves, and wildcards.

    Raises:
        ValueError: a backslash stands before something else than `%`, `_` or a backslash.

    Example:
        >>> pattern_pieces(r"50 \%%")
        ['50 %', <Wildcard.ANY: '%'>]
    """
    pieces: list[str | Wildcard] = []
    found = re.finditer(r"\\([%_\\])|([%_])|([^\\%_]+)|(\\)", pattern)
    for escaped, wildcard, plain, stray in (one.groups() for one in found):
        if stray:
            raise ValueError(r"need \%, \_ or \\ after like, where \ makes a character stand for itself")
        text = escaped or plain
        if wildcard:
            pieces.append(Wildcard(wildcard))
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += text
        else:
            pieces.append(text)
    return pieces


def like_regex(pattern: str) -> re.Pattern[str]:
    r"""The regular expression that matches, with `fullmatch`, the texts that are like a pattern.

    `%` stands for any number of characters, `_` for one (a code point of Unicode), `\%`, `\_` and `\\` for themselves;
    letters match in their own case. Between two `%` the first match is taken and kept, which changes nothing and takes
    time in proportion to the text, whatever the pattern.
    """
    parts = [""]
    for piece in pattern_pieces(pattern):
        if piece is Wildcard.ANY:
            parts.append("")
        else:
            parts[-1] += re.escape(piece) if isinstance(piece, str) else "."
    first, *inner, last = parts if len(parts) > 1 else (*parts, "")
    between = "".join(f"(?>.*?{part})" for part in inner if part)
    return re.compile(first + between + (f".*{last}" if len(parts) > 1 else ""), re.DOTALL)


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
            return self._condition(self._column(), negated)
        finally:
            self.depth -= 1

    def _column(self) -> str:
        kind, word, at = self._next("a column")
        if kind not in ("word", "quoted") or (kind == "word" and word.lower() in KEYWORDS):
            raise self._error('a column (in double quotes where it is a keyword or no plain word: "unit price")', at)
        name = nfc(word[1:-1].replace('""', '"') if kind == "quoted" else word)
        if name not in self.columns:
            known = ", ".join(sorted(map(quoted_column, self.columns))) or "none"
            raise ValueError(f"where: no column {shown(name)}; there are {known}")
        return name

    def _condition(self, column: str, negated: bool) -> Where:
        """What follows a column."""
        if self._take("word", "is"):
            negated ^= self._take("word", "not")
            self._need("null", "word")
            return ColumnMissing(column, negated)
        if self._take("word", "not"):
            if not any(self._sees("word", word) for word in ("in", "like", "ilike", "between")):
                raise self._error("'in', 'like', 'ilike' or 'between' after 'not'")
            negated = not negated
        if self._take("word", "in"):
            return self._membership(column, negated)
        for word in ("like", "ilike"):
            if self._take("word", word):
                return self._pattern(column, negated, word)
        if self._take("word", "between"):
            return self._between(column, negated)
        if self.columns[column] == "boolean" and self._ends():
            return ColumnComparison(column, "=", not negated)
        _, sign, at = self._next("an operator such as =")
        if sign not in _SPELLINGS:
            raise self._error("an operator such as =, or in, like, between, is null", at)
        operator = _SPELLINGS[sign]
        if operator not in ("=", "!="):
            self._need_order(column, at)
        return _compared(column, _OPPOSITE[operator] if negated else operator, self._value(column))

    def _membership(self, column: str, negated: bool) -> ColumnMembership:
        self._need("(")
        values = [self._value(column)]
        while self._take("sign", ","):
            values.append(self._value(column))
        self._need(")")
        possible = tuple(value for value in values if not isinstance(value, Decimal))
        return ColumnMembership(column, possible, negated)

    def _pattern(self, column: str, negated: bool, word: str) -> ColumnPattern:
        at = self.tokens[self.place - 1][2]
        if self.columns[column] != "text":
            raise self._error(f"a text column before {word}, and {quoted_column(column)} is {self.columns[column]}", at)
        at = self.tokens[self.place][2] if self.place < len(self.tokens) else len(self.text)
        pattern = self._value(column)
        assert isinstance(pattern, str)
        try:
            pattern_pieces(pattern)
        except ValueError as error:
            raise self._error(str(error).removeprefix("need "), at) from None
        return ColumnPattern(column, pattern, negated, word == "ilike")

    def _between(self, column: str, negated: bool) -> Where:
        self._need_order(column, self.tokens[self.place - 1][2])
        low = self._value(column)
        self._need("and", "word")
        high = self._value(column)
        if negated:
            return Or(_compared(column, "<", low), _compared(column, ">", high))
        return And(_compared(column, ">=", low), _compared(column, "<=", high))

    def _need_order(self, column: str, at: int) -> None:
        if self.columns[column] == "boolean":
            raise self._error(f"= or != for {quoted_column(column)}, which is true or false", at)

    def _value(self, column: str) -> Constant | Decimal:
        """A constant of the column's type; a Decimal where an integer column cannot hold it."""
        kind, word, at = self._next("a value")
        value: Constant | Decimal
        if kind == "text":
            value = word[1:-1].replace("''", "'")
            value = value if column in _FILES else nfc(value)
        elif kind == "number":
            value = self._number(word, self.columns[column], at)
        elif kind == "word" and word.lower() in ("true", "false"):
            value = word.lower() == "true"
        elif kind == "word" and word.lower() == "null":
            raise self._error(f"a value ({quoted_column(column)} is null finds images without one)", at)
        else:
            hint = " (double quotes are for columns)" if kind == "quoted" else ""
            raise self._error(f"a value: 'text' in single quotes{hint}, a number, true or false", at)
        wanted = self.columns[column]
        if not isinstance(value, _COMPARABLE[wanted]) or (isinstance(value, bool) and wanted != "boolean"):
            raise self._error(f"a value of the type of {quoted_column(column)}, {wanted}", at)
        return value

    def _number(self, word: str, column: ColumnType, at: int) -> int | float | Decimal:
        """A number that every database can compare with this type of column."""
        whole = re.fullmatch(r"[-+]?\d+", word) is not None
        if column != "integer":
            value = float(word)
            if math.isinf(value):
                raise self._error("a number of at most 1.8e308", at)
            return value + 0.0  # no negative zero, which some databases tell from zero
        if whole and (len(word) > 20 or abs(int(word)) > LARGEST_INTEGER):
            raise self._error(f"a whole number of 64 bits, from -{LARGEST_INTEGER} to {LARGEST_INTEGER}", at)
        if math.isinf(float(word)):
            raise self._error("a number of at most 1.8e308", at)
        exact = Decimal(word)
        fits = abs(exact) <= LARGEST_INTEGER and exact == exact.to_integral_value()
        return int(exact) if fits else exact

    def _ends(self) -> bool:
        """Whether a comparison may end here."""
        rest = self.tokens[self.place : self.place + 1]
        return not rest or rest[0][1].lower() in ("and", "or", ")")

    def _sees(self, kind: str, wanted: str) -> bool:
        if self.place == len(self.tokens):
            return False
        found, word, _ = self.tokens[self.place]
        return found == kind and word.lower() == wanted

    def _take(self, kind: str, wanted: str) -> bool:
        seen = self._sees(kind, wanted)
        self.place += seen
        return seen

    def _need(self, wanted: str, kind: str = "sign") -> None:
        if not self._take(kind, wanted):
            raise self._error(f"{wanted!r}")

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


def _compared(column: str, operator: Operator, value: Constant | Decimal) -> Where:
    """A comparison; of an integer column with a number that it cannot hold, what that comes to."""
    if not isinstance(value, Decimal):
        return ColumnComparison(column, operator, value)
    if operator in ("=", "!="):
        return ColumnMembership(column, (), operator == "!=")
    below = operator in ("<", "<=")
    if abs(value) > LARGEST_INTEGER:
        return ColumnMembership(column, (), below == (value > 0))
    return ColumnComparison(column, "<=" if below else ">=", math.floor(value) if below else math.ceil(value))


def to_sql(where: Where) -> str:
    """Translate a parsed condition to SQL for LanceDB, with the names of fields in backquotes."""
    match where:
        case ColumnComparison(column, operator, value):
            return _sql_term(column, f"{operator} {sql_value(value)}", operator == "!=")
        case ColumnMembership(column, (), negated):
            return _sql_term(column, "IS NOT NULL") if negated else "FALSE"
        case ColumnMembership(column, values, negated):
            listed = ", ".join(sql_value(value) for value in values)
            return _sql_term(column, f"{'NOT IN' if negated else 'IN'} ({listed})", negated)
        case ColumnPattern(column, pattern, negated, any_case):  # \ is the escape of LanceDB's LIKE too
            term = f"{'NOT LIKE' if negated else 'LIKE'} {sql_value(pattern.lower() if any_case else pattern)}"
            return _sql_term(column, term, negated, "lower" if any_case else "")
        case ColumnMissing(column, negated):
            return _sql_term(column, f"IS {'NOT ' if negated else ''}NULL")
        case And(left, right):
            return f"({to_sql(left)} AND {to_sql(right)})"
        case Or(left, right):
            return f"({to_sql(left)} OR {to_sql(right)})"


def _sql_term(column: str, term: str, negated: bool = False, function: str = "") -> str:
    """A term about a column, or a function of it.

    LanceDB 0.40 takes `c NOT IN (1) OR c NOT IN (2)` for true also where there is no value, so that is said first.
    """
    field = f"`{field_name(column)}`"
    subject = f"{function}({field})" if function else field
    return f"({field} IS NOT NULL AND {subject} {term})" if negated else f"{subject} {term}"


def sql_value(value: Constant) -> str:
    """Return a constant in SQL."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)
